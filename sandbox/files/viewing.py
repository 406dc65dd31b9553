"""The file as a person is shown it after a call: all of it, or the part around what the call was about."""

import os
from collections.abc import Callable, Iterator

from sandbox.files.encoding import Encoding, file_encoding
from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import open_regular
from sandbox.web import Failure

VIEW_BYTES = 64 * 1024
"""Maximum size of a view, in bytes of the file; 4 more if it is cut."""
_SEARCHED_BYTES = 64 * 1024 * 1024
"""Number of bytes from the start of a file in which a line or a text is looked for."""
_CHUNK = 256 * 1024
"""Number of bytes to read at once."""

_CONTINUATIONS = bytes(range(0x80, 0xC0))
"""Bytes with which no character of UTF-8 begins."""

Locate = Callable[[int, int, Encoding], int]
"""Returns the position in an open file (descriptor, size in bytes, encoding) that a view must contain."""


def view(place: ResolvedPath, locate: Locate, asked: str | None = None) -> str | None:
    """Return the text of a file, at most `VIEW_BYTES` of it, with a mark where it was cut.

    Return None for a file that cannot be shown: the call itself succeeded. `asked`: see `file_encoding`.
    """
    try:
        fd, found = open_regular(place)
        try:
            return _read(fd, found.st_size, file_encoding(fd, place.given, asked), locate)
        finally:
            os.close(fd)
    except (Failure, OSError):
        return None


def at_line(line: int) -> Locate:
    """Locate a line by its number, from 0."""

    def locate(fd: int, _size: int, _encoding: Encoding) -> int:
        left = line
        for position, chunk in _chunks(fd):
            newlines = chunk.count(b"\n")
            if newlines >= left:
                found = -1
                for _ in range(left):
                    found = chunk.index(b"\n", found + 1)
                return position + found + 1
            left -= newlines
        return 0

    return locate


def at_text(text: str) -> Locate:
    """Locate a text by its longest line."""

    def locate(fd: int, _size: int, encoding: Encoding) -> int:
        wanted = max(text.splitlines(), key=len, default="").encode(encoding.name, "replace")[:VIEW_BYTES]
        kept = b""
        for position, chunk in _chunks(fd):
            found = (kept + chunk).find(wanted)
            if found >= 0:
                return position - len(kept) + found
            kept = chunk[-len(wanted) :]
        return 0

    return locate


def at_end(_fd: int, size: int, _encoding: Encoding) -> int:
    """Locate the end."""
    return size


def _chunks(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield parts of the file with their positions."""
    position = 0
    while position < _SEARCHED_BYTES and (chunk := os.pread(fd, _CHUNK, position)):
        yield position, chunk
        position += len(chunk)


def _read(fd: int, size: int, encoding: Encoding, locate: Locate) -> str:
    bom = len(encoding.bom)
    if size <= VIEW_BYTES:
        return os.pread(fd, VIEW_BYTES, bom).decode(encoding.name, "replace").replace("\r\n", "\n")
    start = min(max(locate(fd, size, encoding) - VIEW_BYTES // 2, 0), size - VIEW_BYTES)
    start -= start % 4  # no character of UTF-16 or UTF-32 is cut
    data = os.pread(fd, VIEW_BYTES + 4, start or bom)
    after = size - (start or bom) - len(data)
    if start and encoding.name == "utf-8":
        data = data.lstrip(_CONTINUATIONS)
    text = data.decode(encoding.name, "replace").replace("\r\n", "\n")
    before_mark = f"[... {start:,} bytes of the file are not shown here ...]\n" if start else ""
    after_mark = f"\n[... {after:,} bytes of the file are not shown here ...]" if after > 0 else ""
    return f"{before_mark}{text}{after_mark}"
