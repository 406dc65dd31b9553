"""Marks by which bash reports its state inside its output, and their removal from the output.

A mark is an OSC sequence with a random text of its shell, so that no program writes one by accident:
`ESC ] 7717 ; <mark> ; <number of the command> ; <kind> ; <value> BEL`.
"""

import re
from dataclasses import dataclass

BEGIN, END, PROMPT = b"B", b"E", b"P"
_LONGEST = 128
"""Maximum length of a mark, in bytes."""


@dataclass(frozen=True)
class Mark:
    """A mark of kind BEGIN (a command starts), END (`value` is its exit status) or PROMPT (bash left the loop)."""

    number: int
    kind: bytes
    value: int


class MarkReader:
    """Splits a byte stream, cut anywhere, into output and marks."""

    def __init__(self, word: str) -> None:
        self._start = f"\x1b]7717;{word};".encode()
        self._pattern = re.compile(re.escape(self._start) + rb"(\d*);([BEP]);(\d*)\x07")
        self._held = b""

    def feed(self, data: bytes) -> list[bytes | Mark]:
        """Return output and marks in order. An incomplete mark at the end is kept for the next call."""
        data = self._held + data
        parts: list[bytes | Mark] = []
        position = 0
        if b"\x1b" in data:
            for found in self._pattern.finditer(data):
                if found.start() > position:
                    parts.append(data[position : found.start()])
                number, kind, value = found.groups()
                parts.append(Mark(int(number or 0), kind, int(value or 0)))
                position = found.end()
        keep = self._unfinished(data, position)
        self._held = data[keep:]
        if keep > position:
            parts.append(data[position:keep])
        return parts

    def _unfinished(self, data: bytes, position: int) -> int:
        """Return the position of an incomplete mark at the end, or the length of `data`."""
        escape = data.rfind(b"\x1b", max(position, len(data) - _LONGEST))
        if escape < 0:
            return len(data)
        rest = data[escape:]
        begun = rest.startswith(self._start) and b"\x07" not in rest
        return escape if begun or self._start.startswith(rest) else len(data)
