"""Collection of the fields of a turn that only its model understands: reasoning, and signatures of calls.

Streams send them in pieces. What goes back to the model must be what a complete reply would hold.
"""

import re
from dataclasses import dataclass, field
from typing import TypeGuard, cast

from app.infrastructure.llm.wire_text import clean, encodable, to_json

MAX_FIELDS_BYTES = 512 * 1024
"""Maximum size of the fields of one turn as JSON. The turn is stored and sent again with every request."""

MAX_COLLECTED_CHARS = 2 * MAX_FIELDS_BYTES
"""Maximum number of characters in the pieces of the fields of one turn."""

MAX_FIELD_LEVELS = 32
"""Maximum number of levels of objects and lists in a field."""

_MESSAGE_FIELD = re.compile(r"reason|think|thought|signature|extra_content|provider_specific|encrypted|\bcot\b")
"""Matches names of fields of a message that its model may need back."""

_CALL_FIELDS = frozenset(("index", "id", "type", "function", "name", "arguments"))
_FUNCTION_FIELDS = frozenset(("name", "arguments"))
_FIXED = re.compile(r"(?:^|_)(?:id|type|format|index|role|name|object|status|model)$")
"""Matches names of strings that are sent whole, not in pieces."""

_TEXT_FIELDS = ("text", "thinking", "summary", "reasoning", "content")
"""Fields of a block of reasoning that arrive in pieces."""


@dataclass(slots=True)
class _Pieces:
    """A string that arrives in pieces."""

    parts: list[str]
    length: int

    def add(self, value: str) -> None:
        """Append a piece."""
        self.parts.append(value)
        self.length += len(value)

    def ends_with(self, value: str) -> bool:
        """Return whether the string so far ends with `value`."""
        tail = ""
        for part in reversed(self.parts):
            tail = part + tail
            if len(tail) >= len(value):
                break
        return tail.endswith(value)

    def is_beginning_of(self, value: str) -> bool:
        """Return whether `value` begins with the string so far."""
        return len(value) >= self.length and value.startswith("".join(self.parts))


@dataclass(slots=True)
class FieldCollector:
    """Collects the fields of one message or one call from its pieces."""

    _fields: dict[str, object] = field(default_factory=dict[str, object])
    _size: int = 0

    def add_message(self, delta: dict[str, object]) -> None:
        """Add the fields of a message or of a piece of one."""
        self._add({name: value for name, value in delta.items() if _MESSAGE_FIELD.search(name.lower())})

    def missing(self, message: dict[str, object]) -> set[str]:
        """Return the names of the fields of a message of which nothing has arrived."""
        return {name for name in message if _MESSAGE_FIELD.search(name.lower()) and name not in self._fields}

    def add_call(self, piece: dict[str, object]) -> None:
        """Add the fields of a piece of a call."""
        found = {name: value for name, value in piece.items() if name not in _CALL_FIELDS}
        function = piece.get("function")
        if isinstance(function, dict):
            inner = cast("dict[str, object]", function)
            more = {name: value for name, value in inner.items() if name not in _FUNCTION_FIELDS}
            found |= {"function": more} if more else {}
        self._add(found)

    @property
    def fields(self) -> dict[str, object]:
        """The fields as a complete reply would hold them; without those that exceed a limit."""
        result: dict[str, object] = {}
        if self._size > MAX_COLLECTED_CHARS:
            return result  # A part of a field is worth nothing to its model.
        room = MAX_FIELDS_BYTES
        for name, value in self._fields.items():
            finished = _finish(value)
            text = to_json(finished)
            if text is not None and len(text) <= room:
                room -= len(text)
                result[clean(name)] = encodable(finished)
        return result

    def _add(self, found: dict[str, object]) -> None:
        found = {name: value for name, value in found.items() if _is_shallow(value) and not _is_noise(value)}
        if found and self._size <= MAX_COLLECTED_CHARS:
            self._size += _length(found)
            _merge_object(self._fields, found)


def _is_shallow(value: object, levels: int = MAX_FIELD_LEVELS) -> bool:
    if isinstance(value, dict):
        value = list(cast("dict[str, object]", value).values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in cast("list[object]", value))


def _length(value: object) -> int:
    """Return the number of characters of the strings in `value`; at least one for each value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(cast("dict[str, object]", value).values())
    return 1 + sum(map(_length, cast("list[object]", value))) if isinstance(value, list) else 1


def _is_noise(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_noise(item) for item in cast("dict[str, object]", value).values())
    return value is None or value == "" or value == []


def _merge_object(old: dict[str, object], new: dict[str, object]) -> None:
    for name, value in new.items():
        known = old.get(name)
        if isinstance(value, str):
            if isinstance(known, _Pieces) and not _FIXED.search(name):
                _add_piece(known, value, repeats="signature" in name)
            elif value or known is None:
                old[name] = _Pieces([value], len(value))
        elif isinstance(value, list):
            items = cast("list[object]", known) if isinstance(known, list) else []
            old[name] = items
            _merge_list(items, cast("list[object]", value))
        elif isinstance(value, dict):
            inner = cast("dict[str, object]", known) if isinstance(known, dict) else {}
            old[name] = inner
            _merge_object(inner, cast("dict[str, object]", value))
        elif value is not None or known is None:
            old[name] = value


def _add_piece(pieces: _Pieces, value: str, *, repeats: bool) -> None:
    if repeats:  # some servers send a signature with every piece
        if pieces.is_beginning_of(value):
            pieces.parts, pieces.length = [value], len(value)
            return
        if pieces.ends_with(value):
            return
    pieces.add(value)


def _merge_list(items: list[object], new_items: list[object]) -> None:
    """Add the items of a list, of which those with an `index`, and blocks of text, may arrive in pieces."""
    earlier = len(items)
    for item in new_items:
        new = cast("dict[str, object]", item) if isinstance(item, dict) else None
        if new is None:
            items.append(cast("object", item))
            continue
        # Without an index only a block of text can go on, and only the last one.
        first = 0 if "index" in new else max(earlier - 1, 0) if "type" in new and len(items) == earlier else len(items)
        known = next((item for item in reversed(items[first:]) if _same_block(item, new)), None)
        if known is not None and ("data" in known or "data" in new):
            if _finish(known) == new:
                continue  # encrypted blocks are sent whole: the same one again is a repetition
            known = None
        if known is None or (known.get("signature") and any(new.get(name) for name in _TEXT_FIELDS)):
            fresh: dict[str, object] = {}  # a signature ends its block
            items.append(fresh)
            known = fresh
        _merge_object(known, new)


def _same_block(item: object, new: dict[str, object]) -> TypeGuard[dict[str, object]]:
    if not isinstance(item, dict):
        return False
    known = cast("dict[str, object]", item)
    for name in ("type", "id"):
        left, right = _finish(known.get(name)), new.get(name)
        if left is not None and right is not None and left != right:
            return False
    return known.get("index") == new.get("index")


def _finish(value: object) -> object:
    if isinstance(value, _Pieces):
        return "".join(value.parts)
    if isinstance(value, list):
        return [_finish(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {name: _finish(item) for name, item in cast("dict[str, object]", value).items()}
    return value
