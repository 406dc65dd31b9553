"""JSON and text as model servers send them: several values in one event, NaN, and characters cut in two."""

import json
import math
import re
from typing import cast

import orjson

DONE = "[DONE]"
"""The value that stands for the end of a stream."""

_DECODER = json.JSONDecoder(strict=False)
_BETWEEN = re.compile(r"(?:[\s\0\x1e\ufeff]|data:)*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")
_HALF = re.compile("(?:[\ud800-\udbff]|[\udcc2-\udcf4][\udc80-\udcbf]{0,2})\\Z")
"""Matches half a character at the end: the first half of a surrogate pair, or the first bytes of a UTF-8 sequence."""


def split_json(data: bytes) -> tuple[list[object], str]:
    """Return the JSON values in `data` and the text after the last of them that is not JSON.

    `[DONE]` counts as the value `DONE`. Invalid UTF-8 is kept as `surrogateescape` does, for a `TextJoiner`.
    """
    try:
        return [orjson.loads(data)], ""
    except orjson.JSONDecodeError:
        text = data.decode("utf-8", "surrogateescape")
    values: list[object] = []
    position = 0
    while (position := _end_of_gap(text, position)) < len(text):
        if text.startswith(DONE, position):
            values.append(DONE)
            position += len(DONE)
            continue
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return values, text[position:]
        values.append(value)
    return values, ""


def _end_of_gap(text: str, position: int) -> int:
    gap = _BETWEEN.match(text, position)
    return gap.end() if gap else position


class TextJoiner:
    """Joins the pieces of one text whose characters may be cut in two: a surrogate pair, or the bytes of UTF-8."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return `piece` with the half character before it, and without the one at its end."""
        if not self._held and (piece.isascii() or not _SURROGATE.search(piece)):
            return piece
        text = _join_pairs(self._held + piece)
        half = _HALF.search(text)
        end = half.start() if half else len(text)
        self._held = text[end:]
        return _without_surrogates(text[:end])

    @property
    def rest(self) -> str:
        """Text that is held back: a character, or a replacement for half of one."""
        return _without_surrogates(self._held)


def clean(text: str) -> str:
    """Return a complete text with its halves of characters joined, so that it can be encoded."""
    joiner = TextJoiner()
    return joiner.feed(text) + joiner.rest


def encodable(value: object) -> object:
    """Return a decoded JSON value without what JSON encoders refuse: half characters, NaN and very large integers."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [encodable(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        return {clean(name): encodable(item) for name, item in cast("dict[str, object]", value).items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value


def to_json(value: object) -> str | None:
    """Return a decoded JSON value as JSON text; None if it is nested too deeply."""
    try:
        return orjson.dumps(encodable(value)).decode()
    except (orjson.JSONEncodeError, RecursionError, OverflowError):
        return None


def _join_pairs(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _without_surrogates(text: str) -> str:
    text = _ESCAPED_BYTES.sub(
        lambda found: found[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace"), text
    )
    return _SURROGATE.sub("\ufffd", text)
