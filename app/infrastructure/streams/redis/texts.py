"""Messages as they are written, between processes: what this one writes goes out, what others write comes in.

Text is only a foretaste of the message that will be stored: it may be late or missing, but never is a piece of it
twice, and never without what came before it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from app.infrastructure.streams.memory.feed import MemoryFeed
from app.infrastructure.streams.memory.topics import Writing
from app.infrastructure.streams.redis.bus import IDENTITY_BYTES, RedisBus
from app.infrastructure.streams.redis.frames import LIFE_BYTES, Retracted, Text, decode, encode
from app.infrastructure.streams.redis.orders import Order

TEXT_SECONDS = 60
"""How long Redis keeps the text so far of a message of which nothing more comes."""

TEXT_CHARACTERS = 64 * 1024
"""The text so far of a longer message is not kept: who comes in the middle waits for the whole message."""

_SESSIONS = 4_096
"""Sessions whose text is sent from this process at a time."""


def channel(session_id: str) -> str:
    """The channel on which a session's news go round."""
    return f"session:{session_id}"


def text_key(session_id: str) -> str:
    """The key of the text so far of the message that is being written in a session."""
    return f"text:{session_id}"


@dataclass(slots=True)
class _Sent:
    """What others have of a message that is written here."""

    writing: Writing
    life: bytes
    pieces: int = 0
    characters: int = 0


class SentTexts:
    """The messages that are written in this process. A `Source` of the bus."""

    def __init__(self, hub: MemoryFeed, bus: RedisBus) -> None:
        self._hub = hub
        self._bus = bus
        self._sent: dict[str, _Sent] = {}
        self._changed: dict[str, None] = {}

    def changed(self, session_id: str) -> None:
        """More was written, or nothing more comes, whoever wrote."""
        if session_id not in self._changed and len(self._changed) < _SESSIONS:
            self._changed[session_id] = None
            self._bus.prod()

    def retracted(self, session_id: str) -> None:
        """Nothing more comes of what was written here, if anything was."""
        if session_id in self._sent:
            self.changed(session_id)

    def orders(self) -> Iterator[Order]:
        """See `Source.orders`."""
        changed, self._changed = self._changed, {}
        for session_id in changed:
            writing = self._hub.written(session_id)
            if writing is None or writing.heard:
                yield from self._end(session_id)
            else:
                yield from self._more(session_id, writing)

    def missed(self) -> None:
        """See `Source.missed`."""
        for session_id, sent in self._sent.items():
            sent.pieces = sent.characters = 0
            self._changed[session_id] = None

    def _end(self, session_id: str) -> Iterator[Order]:
        sent = self._sent.get(session_id)

        # Remembered until it is known to be gone: who follows later would read half a message.
        def gone(_: object) -> None:
            if sent is not None and self._sent.get(session_id) is sent:
                del self._sent[session_id]

        yield Order(("DEL", self._bus.name(text_key(session_id))), gone)
        if sent is not None:
            yield self._bus.message(channel(session_id), encode(Retracted(sent.life)))

    def _more(self, session_id: str, writing: Writing) -> Iterator[Order]:
        sent = self._sent.get(session_id)
        if sent is None or sent.writing is not writing:
            sent = self._begin(session_id, writing)
        text = "".join(writing.pieces[sent.pieces :])
        piece = Text(sent.life, writing.message_id, sent.characters, text)
        sent.pieces = len(writing.pieces)
        sent.characters += len(text)
        key = self._bus.name(text_key(session_id))
        # First the whole: who misses the beginning of the piece finds it there.
        if sent.characters <= TEXT_CHARACTERS:
            whole = Text(sent.life, writing.message_id, 0, "".join(writing.pieces))
            yield Order(("SET", key, encode(whole), "EX", TEXT_SECONDS))
        else:
            yield Order(("DEL", key))
        yield self._bus.message(channel(session_id), encode(piece))

    def _begin(self, session_id: str, writing: Writing) -> _Sent:
        self._sent.pop(session_id, None)
        if len(self._sent) >= _SESSIONS:
            del self._sent[next(iter(self._sent))]
        life = self._bus.identity + os.urandom(LIFE_BYTES - IDENTITY_BYTES)
        sent = self._sent[session_id] = _Sent(writing, life)
        return sent


@dataclass(slots=True)
class _Heard:
    """What came here of a message that is written elsewhere."""

    writing: Writing
    life: bytes
    characters: int = 0
    over: bool = False
    resting: bool = False
    """It is not known whether it still is being written: nothing is shown of it until more comes."""


class HeardText:
    """The message that another process writes in a session which is followed here."""

    def __init__(self, hub: MemoryFeed, bus: RedisBus, session_id: str) -> None:
        self._hub = hub
        self._bus = bus
        self._session_id = session_id
        self._heard: _Heard | None = None
        self._turn = 0
        self._replaced = b""
        self._sought = b""
        self._hopeless = b""

    def take(self, piece: Text) -> None:
        """A piece came, or the whole text so far."""
        if not self._is_wanted(piece):
            return
        heard = self._heard
        if heard is None or heard.life != piece.life:
            if piece.offset == 0:
                self._add(self._begin(piece), piece.text)
            else:
                self._seek(piece.life)
        elif not heard.over:
            if piece.offset <= heard.characters:
                self._add(heard, piece.text[heard.characters - piece.offset :])
            else:
                self._seek(piece.life)

    def retracted(self, life: bytes) -> None:
        """Nothing more comes of the message of that life."""
        if self._heard is not None and self._heard.life == life:
            self.end()

    def ended(self, sender: bytes) -> None:
        """Nothing more comes of what `sender` was writing."""
        if self._heard is not None and self._heard.life.startswith(sender):
            self.end()

    def end(self) -> None:
        """Nothing more comes of the message, whoever was writing it."""
        self._turn += 1
        if self._heard is not None:
            self._heard.over = True
            self._hide(self._heard)

    def look(self) -> None:
        """Something may have been missed. The text so far, if there is any, is in Redis."""
        self._sought = b""
        heard = self._heard
        if heard is not None and not heard.over and not heard.resting:
            heard.resting = True
            self._hide(heard)
        self._fetch(b"")

    def _is_wanted(self, piece: Text) -> bool:
        if piece.life == self._replaced or piece.life.startswith(self._bus.identity):
            return False
        # What is written here has no rival: if it has, then one of the two has lost its lease and will end.
        writing = self._hub.written(self._session_id)
        return writing is None or writing.heard

    def _seek(self, life: bytes) -> None:
        """The beginning of the message of that life is missing here."""
        if life not in (self._sought, self._hopeless):
            self._sought = life
            self._fetch(life)

    def _fetch(self, life: bytes) -> None:
        heard, turn = self._heard, self._turn

        def found(value: bytes | None) -> None:
            if life == self._sought:
                self._sought = b""
            piece = None if value is None else decode(value)
            if not isinstance(piece, Text):
                self._hopeless = life
            elif self._turn == turn and self._heard is heard:
                # Otherwise what came on the channel in the meantime is newer, and whole from its beginning.
                self.take(piece)

        self._bus.fetch(text_key(self._session_id), found)

    def _begin(self, piece: Text) -> _Heard:
        if self._heard is not None and not self._heard.over:
            self._replaced = self._heard.life
        self._turn += 1
        self._heard = _Heard(Writing(piece.message_id, heard=True), piece.life)
        self._hub.resume(self._session_id, self._heard.writing)
        return self._heard

    def _add(self, heard: _Heard, text: str) -> None:
        if heard.resting:
            heard.resting = False
            self._hub.resume(self._session_id, heard.writing)
        if text:
            heard.characters += len(text)
            heard.writing.pieces.append(text)
            self._hub.resume(self._session_id, heard.writing)

    def _hide(self, heard: _Heard) -> None:
        if self._hub.written(self._session_id) is heard.writing:
            self._hub.end_delta(self._session_id)
