"""Assembly of tool calls from their pieces.

Which call a piece belongs to is told by its index, its id, its name or its place, and servers get each of them wrong:
no index, or one for all; no id, or another in every piece; the name in pieces or in every piece; everything so far
repeated in every piece, or once more at the end.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson

from app.infrastructure.llm.provider_fields import FieldCollector
from app.infrastructure.llm.wire_text import TextJoiner, clean, split_json, to_json

_BRACKETS = re.compile(r'[{}\[\]"]|\\.')

_MAX_OPEN_CALLS = 16
"""Maximum number of calls that grow at the same time and are told apart only by their place."""


@dataclass(slots=True, eq=False)
class PartialCall:
    """A call as far as it has arrived."""

    id: str = ""
    name: str = ""
    choice: int = 0
    fields: FieldCollector = field(default_factory=FieldCollector)
    _pieces: list[str] = field(default_factory=list[str])
    _folded: list[str] = field(default_factory=list[str])
    """The pieces without those that a later piece repeats."""
    _length: int = 0
    """Length of the folded pieces."""
    _joiner: TextJoiner = field(default_factory=TextJoiner)
    _scan: "_Scan" = field(default_factory=lambda: _Scan())

    @property
    def has_arguments(self) -> bool:
        """Whether any part of the arguments has arrived."""
        return bool(self._pieces)

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a complete JSON object."""
        return self._scan.is_complete(self._folded)

    def add_arguments(self, piece: str) -> str:
        """Add a piece of the arguments and return what is new in it."""
        piece = self._joiner.feed(piece)
        if not piece:
            return ""
        self._pieces.append(piece)
        if self._length and self._is_repeated_in(piece):
            new = piece[self._length :]
            self._folded, self._length, self._scan = [piece], len(piece), _Scan()
            return new
        self._folded.append(piece)
        self._length += len(piece)
        return piece

    def add_name(self, piece: str, offered: Collection[str]) -> None:
        """Add the name or a piece of it. Names are complete before the arguments begin."""
        if self.has_arguments and self.name:
            return
        joined = self.name + piece
        if self.name and not any(name.startswith(joined) for name in offered):
            if piece.startswith(self.name):
                joined = piece
            elif self.name.endswith(piece):
                joined = self.name
        self.name = joined

    @property
    def arguments(self) -> str:
        """The arguments without repetitions. A text that is JSON as it arrived is never changed."""
        rest = self._joiner.rest
        joined = "".join(self._pieces) + rest
        if _is_json(joined):
            return joined
        if len(self._folded) < len(self._pieces):
            folded = "".join(self._folded) + rest
            # Two pieces that begin alike may be a nested object that was cut off; three are a habit of the server.
            if _is_json(folded) or (len(self._folded) == 1 and len(self._pieces) > 2):
                return folded
        return _without_repetition(joined)

    def _is_repeated_in(self, piece: str) -> bool:
        """Return whether `piece` begins with everything so far."""
        if len(piece) < self._length or not piece.startswith(("{", "[", '"')):
            return False
        position = 0
        for part in self._folded:
            if not piece.startswith(part, position):
                return False
            position += len(part)
        return True


@dataclass(slots=True)
class _Scan:
    """An incremental search for the end of a JSON object."""

    _next: int = 0
    """Number of pieces that were searched."""
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _complete: bool = False

    def is_complete(self, pieces: Sequence[str]) -> bool:
        for piece in pieces[self._next :]:
            self._search(piece)
        self._next = len(pieces)
        return self._complete

    def _search(self, piece: str) -> None:
        text = piece[1:] if self._escaped else piece
        # A backslash at the end escapes the first character of the next piece.
        self._escaped = (len(text) - len(text.rstrip("\\"))) % 2 == 1
        for found in _BRACKETS.finditer(text):
            char = found[0]
            if char == '"':
                self._in_string = not self._in_string
            elif not self._in_string and len(char) == 1:
                self._depth += 1 if char in "{[" else -1
                self._complete = self._complete or self._depth == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    choice: int
    index: int | None
    id: str
    name: str
    arguments: str


class CallAssembler:
    """Assembles the calls of one reply."""

    def __init__(self, offered: Collection[str]) -> None:
        """Create an assembler. `offered`: names of the functions that the model may call."""
        self.calls: list[PartialCall] = []
        """All calls, in the order in which they began."""
        self._offered = offered
        self._slots: dict[tuple[int, int | None], list[PartialCall]] = {}
        """The calls by choice and index."""
        self._by_id: dict[tuple[int, str], PartialCall] = {}
        self._latest: dict[int, PartialCall] = {}

    def add(self, delta: Sequence[dict[str, object]], *, choice: int) -> list[tuple[str, str]]:
        """Add the pieces of one delta. Return the name and the new arguments of each call that has grown."""
        pieces = [_read_piece(piece, choice) for piece in delta]
        grown: list[tuple[str, str]] = []
        used: set[PartialCall] = set()
        counts, places = Counter(piece.index for piece in pieces), Counter[int | None]()
        for piece, source in zip(pieces, delta, strict=True):
            call = self._find(piece, used, place=places[piece.index], count=counts[piece.index])
            places[piece.index] += 1
            used.add(call)
            call.id = call.id or piece.id
            if piece.name:
                call.add_name(piece.name, self._offered)
            call.fields.add_call(source)
            if new := call.add_arguments(piece.arguments):
                grown.append((call.name, new))
        return grown

    def finished(self) -> list[PartialCall]:
        """Return the calls that carry anything, without those that another choice repeats."""
        result: list[PartialCall] = []
        seen: dict[tuple[str, str], int] = {}
        for call in self.calls:
            key = (call.name, call.arguments)
            if (call.name or call.has_arguments) and seen.setdefault(key, call.choice) == call.choice:
                result.append(call)
        return result

    def _find(self, piece: _Piece, used: Collection[PartialCall], *, place: int, count: int) -> PartialCall:
        """Return the call of a piece, a new one if necessary.

        Args:
            piece: The piece.
            used: The calls of the earlier pieces of the same delta.
            place: Position of the piece among those of the delta with the same index, or without one.
            count: Number of these.
        """
        slot = self._slots.setdefault((piece.choice, piece.index), [])
        call = self._candidate(piece, slot, place, count)
        if call is None or self._starts_new_call(call, piece, used=call in used):
            call = PartialCall(choice=piece.choice)
            self.calls.append(call)
            slot.append(call)
        if piece.id and not call.id:
            self._by_id[piece.choice, piece.id] = call
        self._latest[piece.choice] = call
        return call

    def _candidate(self, piece: _Piece, slot: list[PartialCall], place: int, count: int) -> PartialCall | None:
        """Return the call that `piece` continues if it does not start one."""
        latest = self._latest.get(piece.choice)
        if piece.id:
            with_id = self._by_id.get((piece.choice, piece.id))
            if slot and slot[-1].id == piece.id:
                return slot[-1]
            if with_id and (slot or not piece.name or not with_id.is_complete):
                return with_id
        if not slot:
            # A piece without index, id and name, or with an index that counts the pieces, continues the last call.
            return latest if piece.index is None or not (piece.id or piece.name) else None
        if len(slot) == 1 or (piece.id and piece.name):
            return slot[-1]
        recent = slot[-max(count, _MAX_OPEN_CALLS) :]
        candidates = ([call for call in recent if not call.is_complete] or recent)[-count:]
        return candidates[min(place, len(candidates) - 1)]

    def _starts_new_call(self, call: PartialCall, piece: _Piece, *, used: bool) -> bool:
        """Return whether `piece` starts a call. `used`: an earlier piece of the same delta belongs to `call`."""
        name, arguments = piece.name, piece.arguments
        opens_object = arguments.lstrip().startswith("{")
        if piece.id and call.id and piece.id != call.id:
            if name == call.name and arguments and call.has_arguments and not opens_object:
                return call.is_complete  # a server that invents an id for every piece
            return bool(name) or (call.is_complete and (opens_object or not arguments))
        if not name or not call.name or (piece.id == call.id != "" and name == call.name):
            return False
        if used:
            return name != call.name or opens_object or not arguments
        if name != call.name:
            return self._is_other_name(call, name)
        return call.is_complete and (not arguments or (opens_object and arguments != call.arguments))

    def _is_other_name(self, call: PartialCall, name: str) -> bool:
        """Return whether `name` is the name of another call rather than the next piece of the name of `call`."""
        if call.has_arguments:
            return True
        if name.startswith(call.name) or any(known.startswith(call.name + name) for known in self._offered):
            return False
        return call.name in self._offered or name in self._offered


def _read_piece(piece: dict[str, object], choice: int) -> _Piece:
    function = piece.get("function")
    # Some servers leave out the `function` level.
    fields = cast("dict[str, object]", function) if isinstance(function, dict) and function else piece
    name, call_id, arguments = fields.get("name"), piece.get("id"), fields.get("arguments")
    if arguments is None:
        arguments = ""
    return _Piece(
        choice=choice,
        index=as_index(piece.get("index")),
        id=clean(call_id) if isinstance(call_id, str) else str(call_id or ""),
        name=clean(name) if isinstance(name, str) else "",
        arguments=arguments if isinstance(arguments, str) else to_json(arguments) or "",
    )


def as_index(value: object) -> int | None:
    """Return an index that may be given as text; None if it is something else."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:9])
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 else None


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _without_repetition(text: str) -> str:
    """Return the arguments if `text` is them several times, or with empty ones, which some servers send first."""
    values, rest = split_json(text.encode())
    objects = [cast("dict[str, object]", value) for value in values if isinstance(value, dict)]
    if rest or len(objects) < 2 or len(objects) < len(values):
        return text
    largest = max(objects, key=len)
    is_repeated = all(name in largest and largest[name] == value for item in objects for name, value in item.items())
    return (to_json(largest) or text) if is_repeated else text
