"""Collection of the fields of a turn that only its model understands: reasoning, and signatures of calls.

Streams send them in pieces. What goes back to the model must be what a complete reply would hold.
"""

import re
from dataclasses import dataclass, field
from typing import TypeGuard, cast

from app.infrastructure.llm.wire_text import clean, encodable, to_json

MAX_FIELDS_BYTES = 512 * 1024
"""Maximum size of the fields of one turn as JSON. The turn is stored and sent again with every request."""

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


class _Pieces(list[str]):
    """A string that arrives in pieces."""


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
        """The fields as a complete reply would hold them; without those that exceed `MAX_FIELDS_BYTES`."""
        result: dict[str, object] = {}
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
        # Beyond the limit the fields are dropped in the end: collect only enough to know it.
        if found and self._size <= 2 * MAX_FIELDS_BYTES:
            self._size += sum(len(value) if isinstance(value, str) else len(repr(value)) for value in found.values())
            _merge_object(self._fields, found)


def _is_shallow(value: object, levels: int = MAX_FIELD_LEVELS) -> bool:
    if isinstance(value, dict):
        value = list(cast("dict[str, object]", value).values())
    if not isinstance(value, list):
        return True
    return levels > 0 and all(_is_shallow(item, levels - 1) for item in cast("list[object]", value))


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
                old[name] = _Pieces([value])
        elif isinstance(value, list):
            is_list = isinstance(known, list) and not isinstance(known, _Pieces)
            items = cast("list[object]", known) if is_list else []
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
        known = "".join(pieces)
        if value.startswith(known):
            pieces[:] = [value]
            return
        if known.endswith(value):
            return
    pieces.append(value)


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
        return "".join(value)
    if isinstance(value, list):
        return [_finish(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {name: _finish(item) for name, item in cast("dict[str, object]", value).items()}
    return value
