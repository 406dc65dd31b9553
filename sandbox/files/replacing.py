"""Replacement of text in a file. All bytes that are not replaced stay the same, whatever the encoding."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from sandbox.files.encoding import SAMPLE_BYTES, encode, file_encoding, format_size
from sandbox.files.guess import KEEP, KEPT
from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import has_cr_ends, open_regular, with_newlines
from sandbox.files.writing import Written, store
from sandbox.web import Failure

MAX_BYTES = 32 * 1024 * 1024
"""Maximum size of a file to replace text in, in bytes."""


def replace(place: ResolvedPath, old: str, new: str, asked: str | None = None) -> Written:
    """Replace every `old` by `new`. `asked`: the file's encoding, if the caller knows it.

    A newline in `old` matches any line end, and one in `new` becomes the line end that it replaces, or the nearest one.
    An `old` with carriage returns that occur as they are is replaced exactly.

    Raises:
        Failure: `old` does not occur, `new` cannot be encoded, or the file is binary or too large.
        OSError: The operating system refused.
    """
    if not old:
        raise Failure(400, "old_str is empty")
    fd, found = open_regular(place)
    try:
        if found.st_size > MAX_BYTES:
            raise Failure(413, f"{format_size(found.st_size)} is too large to replace in: use sed in a shell")
        encoding = file_encoding(fd, place.given, asked)
        data = os.pread(fd, MAX_BYTES + 1, 0)
    finally:
        os.close(fd)
    text = data[len(encoding.bom) :].decode(encoding.name, KEEP)
    cr_ends = has_cr_ends(data[:SAMPLE_BYTES].decode(encoding.name, KEEP))
    encoded: dict[str, bytes] = {}
    changed, count, at_char, at = bytearray(encoding.bom), 0, 0, len(encoding.bom)
    for start, end, replacement in _edits(text, old, new, cr_ends=cr_ends):
        first = _skip(data, at, text[at_char:start], encoding.name)
        if replacement not in encoded:
            encoded[replacement] = encode(replacement, encoding, place.given)
        changed += data[at:first] + encoded[replacement]
        at_char, at, count = end, _skip(data, first, text[start:end], encoding.name), count + 1
    if not count:
        raise Failure(404, f"old_str does not occur in {place.given}{_hint(text, old, is_guess=encoding.is_guess)}")
    changed += data[at:]
    store(place, [changed], len(changed))
    return Written(count, encoding)


def _hint(text: str, old: str, *, is_guess: bool) -> str:
    if "\ufffd" in old and re.search(f"[{KEPT}]", text):
        return ": \ufffd stands for bytes that are not valid, leave it out"
    return ", as read in an encoding that is a guess: pass `encoding` if it is another" if is_guess else ""


def _edits(text: str, old: str, new: str, *, cr_ends: bool) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and replacement of what has to change in `text`, for each place where `old` occurs."""
    if "\r" in old and old in text:
        for found in re.finditer(re.escape(old), text):
            yield found.start(), found.end(), new
        return
    shown = "".join(with_newlines([text], cr_ends=cr_ends, seen=set()))
    old = old if old in shown else old.replace("\r\n", "\n")
    # What both have in common at their ends stays as it is in the file.
    exact = "\r" in new and "\r" not in old
    before = 0 if exact else _common_length(old, new)
    after = 0 if exact else _common_length(old[before:][::-1], new[before:][::-1])
    replacement = new[before : len(new) - after]
    ends = _LineEnds(text, cr_ends=cr_ends)
    for found in re.finditer(re.escape(old), shown):
        start, nearest = ends.offset(found.start() + before), ends.last
        stop = ends.offset(found.end() - after)
        yield start, stop, _with_line_ends(replacement, ends.passed or [nearest])


class _LineEnds:
    """The line ends of a text, read in order. They tell where a position of the text with newlines is in the text."""

    def __init__(self, text: str, *, cr_ends: bool) -> None:
        self._found = re.finditer(r"\r\n|\r|\n" if cr_ends else r"\r\n|\n", text)
        self._next = next(self._found, None)
        self._removed = 0
        self.passed: list[str] = []
        """The line ends between the last two positions."""
        self.last = self._next[0] if self._next else "\n"
        """The last line end before the last position, or else the first one of the text."""

    def offset(self, position: int) -> int:
        """Return where a position of the text with newlines is in the text. Positions grow from call to call."""
        self.passed = []
        while self._next is not None and self._next.start() - self._removed < position:
            self.last = self._next[0]
            self.passed.append(self.last)
            self._removed += len(self.last) - 1
            self._next = next(self._found, None)
        return position + self._removed


def _common_length(one: str, other: str) -> int:
    """Return the number of characters that two texts have in common at their start."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _with_line_ends(text: str, line_ends: list[str]) -> str:
    """Give the newlines of a text those line ends, and the last one to all that are left."""
    numbers = iter(range(len(text)))
    return re.sub(r"(?<!\r)\n", lambda _: line_ends[min(next(numbers), len(line_ends) - 1)], text)


def _skip(data: bytes, at: int, text: str, encoding: str) -> int:
    """Return the offset behind `text`, whose bytes are in `data` at `at`.

    Encoding the text again may give other bytes: some encodings have two sequences for a character.
    """
    with suppress(UnicodeError, ValueError):
        encoded = text.encode(encoding, KEEP)
        if data.startswith(encoded, at):
            return at + len(encoded)
    if len(text) > 1:
        half = len(text) // 2
        return _skip(data, _skip(data, at, text[:half], encoding), text[half:], encoding)
    if "\udc00" <= text <= "\udcff":
        return at + 1
    for width in range(1, 5):
        with suppress(UnicodeError):
            if data[at : at + width].decode(encoding) == text:
                return at + width
    raise ValueError(f"{encoding} does not decode to the same text again")
