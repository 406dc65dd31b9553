"""The feed and the signals of a process that exchanges messages with other processes over Redis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from app.domain.external.signals import Signal
from app.domain.models.event import TERMINAL, EventRecord, StatusDelta, TextDelta
from app.infrastructure.streams.memory import TEXT_ENDING_TYPES, MemoryFeed, PartialMessage
from app.infrastructure.streams.polling import LastEventNumbers, PollingFeed
from app.infrastructure.streams.redis.connection import RedisConnection
from app.infrastructure.streams.redis.messages import (
    RecordsStored,
    SessionDeleted,
    TextAdded,
    TextEnded,
    decode,
    encode,
)
from app.infrastructure.streams.redis.publisher import Message

MAX_RECORDS_BYTES = 256 * 1024
"""Maximum size of records to send; subscribers read larger ones from the event log."""


class RedisFeed(PollingFeed):
    """A `Feed` for one of several processes that are connected to Redis.

    Subscribers in this process receive records and text of other processes over Redis. What was lost there they read
    from the event log. The process is subscribed to a session's channel while the session has subscribers here.
    """

    def __init__(self, connection: RedisConnection, last_event_numbers: LastEventNumbers) -> None:
        super().__init__(last_event_numbers)
        self._connection = connection
        self._list_channel = connection.name("sessions")
        self._list_subscribed = False
        self._outgoing = OutgoingTexts(self, connection)
        self._incoming: dict[str, IncomingText] = {}

    @property
    def is_notified(self) -> bool:
        """Whether other processes currently notify this one of what they write."""
        return self._connection.connected

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """Implement `Feed.publish`."""
        if self._closed or not records:
            return
        super().publish(session_id, records)
        channel = _channel(self._connection, session_id)
        if sum(len(record.data) for record in records) <= MAX_RECORDS_BYTES:
            self._connection.publisher.publish(channel, encode(RecordsStored(records)))
        else:
            self._connection.publisher.notify(channel)
        if session_id in self._incoming and any(record.type in TERMINAL for record in records):
            self._incoming[session_id].end()

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """Implement `Feed.publish_delta`."""
        if not self._closed:
            super().publish_delta(session_id, delta)
            self._outgoing.update(session_id)

    def publish_status(self, session_id: str, status: StatusDelta) -> None:
        """Implement `Feed.publish_status`."""
        if not self._closed:
            super().publish_status(session_id, status)
            self._connection.publisher.publish(_channel(self._connection, session_id), encode(status))

    def end_delta(self, session_id: str) -> None:
        """Implement `Feed.end_delta`."""
        super().end_delta(session_id)
        self._outgoing.update_end(session_id)

    def notify_list_changed(self) -> None:
        """Implement `Feed.notify_list_changed`."""
        if not self._closed:
            super().notify_list_changed()
            self._connection.publisher.notify(self._list_channel)

    def close_session(self, session_id: str) -> None:
        """Implement `Feed.close_session`."""
        super().close_session(session_id)
        if not self._closed:
            self._connection.publisher.publish(_channel(self._connection, session_id), encode(SessionDeleted()))
            self._outgoing.update_end(session_id)

    async def sessions_changed(self, seen: int) -> int | None:
        """Implement `Feed.sessions_changed`."""
        if not self._list_subscribed:
            self._list_subscribed = True
            self._connection.subscriber.subscribe(
                self._list_channel, lambda _payload, _sender: self.wake_list_readers()
            )
        return await super().sessions_changed(seen)

    def _on_subscribed(self, session_id: str) -> None:
        if session_id not in self._incoming:
            self._incoming[session_id] = IncomingText(self, self._connection, session_id)
            listener = partial(self._on_message, session_id)
            self._connection.subscriber.subscribe(_channel(self._connection, session_id), listener)

    def _on_unsubscribed(self, session_id: str) -> None:
        if (text := self._incoming.pop(session_id, None)) is not None:
            self._connection.subscriber.unsubscribe(_channel(self._connection, session_id))
            text.end()

    def _on_stale(self, session_id: str) -> None:
        self._incoming[session_id].resync()

    def _on_message(self, session_id: str, payload: bytes, sender: bytes) -> None:
        text = self._incoming[session_id]
        match decode(payload):
            case RecordsStored(records):
                types = {record.type for record in records}
                if types & TERMINAL:
                    text.end()
                elif types & TEXT_ENDING_TYPES:
                    # The message of another process may be the user's, which does not end what the agent writes.
                    text.end(sender.decode())
                if not self.deliver(session_id, records):
                    text.resync()
            case TextAdded() as piece:
                text.add(piece)
            case TextEnded(text_id):
                text.end(text_id)
            case StatusDelta() as status:
                self.show_status(session_id, status)
            case SessionDeleted():
                self.end_subscriptions(session_id)
            case _:  # Messages may have been missed.
                self.mark_stale(session_id)
                text.resync()


@dataclass(slots=True)
class SentText:
    """The part of a message written in this process that was sent already."""

    message: PartialMessage
    text_id: str
    pieces: int = 0
    characters: int = 0


class OutgoingTexts:
    """Sends the messages that are written in this process to other processes, piece by piece.

    Text is a preview of the message that will be stored. It may be late or missing, but no piece of it is shown twice
    or without what came before it. A process that missed the beginning requests it on the session's text channel.
    """

    def __init__(self, feed: MemoryFeed, connection: RedisConnection) -> None:
        self._feed = feed
        self._connection = connection
        self._sent: dict[str, SentText] = {}
        self._begun = 0

    def update(self, session_id: str) -> None:
        """Send soon what was added to the message, or its end."""
        self._connection.publisher.defer(session_id, partial(self._messages, session_id))

    def update_end(self, session_id: str) -> None:
        """Send soon the end of the message, if any of it was sent."""
        if session_id in self._sent:
            self.update(session_id)

    def _messages(self, session_id: str) -> Sequence[Message]:
        """Return the messages that bring other processes up to date."""
        channel, messages = _channel(self._connection, session_id), list[Message]()
        message, sent = self._feed.partial_message(session_id), self._sent.get(session_id)
        if message is not None and message.is_remote:
            message = None
        if sent is not None and sent.message is not message:
            messages.append(Message(channel, encode(TextEnded(sent.text_id))))
            self._end(session_id)
            sent = None
        if message is not None:
            sent = sent or self._begin(session_id, message)
            added = "".join(message.pieces[sent.pieces :])
            piece = TextAdded(sent.text_id, message.message_id, sent.characters, added)
            sent.pieces = len(message.pieces)
            sent.characters += len(added)
            messages.append(Message(channel, encode(piece), on_lost=partial(self._resend, session_id)))
        return messages

    def _begin(self, session_id: str, message: PartialMessage) -> SentText:
        self._begun += 1
        sent = SentText(message, f"{self._connection.process_id.decode()}-{self._begun}")
        self._sent[session_id] = sent
        channel = _text_channel(self._connection, session_id)
        self._connection.subscriber.subscribe(channel, lambda _payload, _sender: self._resend(session_id))
        return sent

    def _end(self, session_id: str) -> None:
        del self._sent[session_id]
        self._connection.subscriber.unsubscribe(_text_channel(self._connection, session_id))

    def _resend(self, session_id: str) -> None:
        """Send the message again from its beginning."""
        if (sent := self._sent.get(session_id)) is not None:
            sent.pieces = sent.characters = 0
            self.update(session_id)


class IncomingText:
    """The message that another process writes in a session with subscribers here."""

    def __init__(self, feed: MemoryFeed, connection: RedisConnection, session_id: str) -> None:
        self._feed = feed
        self._connection = connection
        self._session_id = session_id
        self._message = PartialMessage("", is_remote=True)
        self._text_id = ""
        self._length = 0
        self._ended = True
        self._replaced_id = ""

    def add(self, piece: TextAdded) -> None:
        """Show `piece`. If text before it is missing, request the whole text."""
        shown = self._feed.partial_message(self._session_id)
        # While this process writes, another one that writes has lost its lease and will end.
        if piece.text_id == self._replaced_id or (shown is not None and not shown.is_remote):
            return
        is_new = piece.text_id != self._text_id
        if piece.offset > (0 if is_new else self._length):
            self._request()
        elif is_new or not self._ended:
            if is_new:
                self._begin(piece)
            if added := piece.text[self._length - piece.offset :]:
                self._message.pieces.append(added)
                self._length += len(added)
            self._feed.show_partial_message(self._session_id, self._message)

    def end(self, text_id: str = "") -> None:
        """End the message if its text id begins with `text_id`."""
        if self._text_id.startswith(text_id):
            self._ended = True
            self._hide()

    def resync(self) -> None:
        """Hide the message until more of it arrives, as its end may have been missed. Request the whole text."""
        self._hide()
        self._request()

    def _begin(self, piece: TextAdded) -> None:
        if not self._ended:
            self._replaced_id = self._text_id
        self._message = PartialMessage(piece.message_id, is_remote=True)
        self._text_id, self._length, self._ended = piece.text_id, 0, False

    def _hide(self) -> None:
        if self._feed.partial_message(self._session_id) is self._message:
            self._feed.end_delta(self._session_id)

    def _request(self) -> None:
        self._connection.publisher.notify(_text_channel(self._connection, self._session_id))


def _channel(connection: RedisConnection, session_id: str) -> bytes:
    return connection.name(f"session:{session_id}")


def _text_channel(connection: RedisConnection, session_id: str) -> bytes:
    return connection.name(f"text:{session_id}")


class RedisSignals:
    """`Signals` over Redis. Signals are lost while Redis is unavailable."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._channel = connection.name("signals")

    def send(self, signal: Signal) -> None:
        """Implement `Signals.send`."""
        self._connection.publisher.publish(self._channel, encode(signal))

    def listen(self, on_signal: Callable[[Signal], None]) -> None:
        """Implement `Signals.listen`."""

        def on_message(payload: bytes, _sender: bytes) -> None:
            if isinstance(signal := decode(payload), Signal):
                on_signal(signal)

        self._connection.subscriber.subscribe(self._channel, on_message)
