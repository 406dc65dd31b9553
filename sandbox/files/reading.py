"""Reading of text in any encoding and of any size, limited to the requested lines."""

import codecs
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sandbox.files.encoding import SAMPLE_BYTES, Encoding, file_encoding
from sandbox.files.guess import KEEP, KEPT
from sandbox.files.paths import ResolvedPath
from sandbox.web import Failure

LINE_END_NAMES = {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}
MAX_CHARACTERS = 1024 * 1024
"""Maximum number of characters of one read."""
VIEW_BYTES = 64 * 1024
"""Maximum size of a view, in bytes of the file; 4 more if it is cut."""
_SEARCHED_BYTES = 64 * 1024 * 1024
"""Number of bytes from the start of a file in which a line or a text is looked for."""

_CONTINUATIONS = bytes(range(0x80, 0xC0))
"""Bytes with which no character of UTF-8 begins."""
_CHUNK = 256 * 1024
"""Number of bytes to read at once."""
_COUNT_BYTES = 64 * 1024 * 1024
"""Maximum size of a file whose lines are all counted, in bytes."""
_SECONDS = 10.0
"""Maximum time of one read, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The lines from `start_line` (from 0) up to `end_line`; of their text the characters of that range."""

    start_line: int = 0
    end_line: int | None = None
    start_char: int = 0
    end_char: int | None = None


@dataclass(kw_only=True)
class FileText:
    """Selected text of a file, with newline line ends. Bytes that are not valid are shown as U+FFFD."""

    content: str
    encoding: Encoding
    line_count: int | None
    """None if the file was not read to its end."""
    selected: int
    """Number of characters of the selected lines, as far as they were read."""
    next_line: int | None = None
    """Line to continue with; None if nothing was left out."""
    next_char: int | None = None
    """Character of that line, or of all lines from there, to continue with; None for its start."""
    line_ends: frozenset[str] = frozenset()
    invalid: int = 0
    """Number of bytes shown as U+FFFD."""


def open_regular(place: ResolvedPath) -> tuple[int, os.stat_result]:
    """Open a regular file for reading. Pipes, devices and folders could block or never end.

    Raises:
        Failure: 400 if it is not a regular file.
        OSError: The operating system refused.
    """
    # Does not wait for the other end of a pipe. The open file is checked, so it cannot be swapped.
    fd = os.open(place.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        place.check(fd)
        found = os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise
    if stat.S_ISREG(found.st_mode):
        return fd, found
    os.close(fd)
    if stat.S_ISDIR(found.st_mode):
        raise Failure(400, f"is a folder: {place.given}")
    raise Failure(400, f"not a regular file but a pipe, socket or device: {place.given}")


def decode_chunks(fd: int, encoding: Encoding) -> Iterator[str]:
    """Yield the text of an open file in chunks, without its byte order mark. Invalid bytes are kept, see `KEEP`."""
    decoder = codecs.getincrementaldecoder(encoding.name)(KEEP)
    os.lseek(fd, len(encoding.bom), os.SEEK_SET)
    while data := os.read(fd, _CHUNK):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def has_cr_ends(start: str) -> bool:
    """Return whether the lines of a text end with carriage returns alone, as on old Macs. `start`: its beginning."""
    return "\r" in start and "\n" not in start


def with_newlines(chunks: Iterable[str], *, cr_ends: bool, seen: set[str]) -> Iterator[str]:
    """Yield chunks of text with newlines as line ends. `seen`: gains the line ends that the text had."""
    held = ""
    for chunk in itertools.chain(chunks, [None]):
        text = held + (chunk or "")
        held = "\r" if text.endswith("\r") and chunk is not None else ""  # a newline may follow
        text = text[: len(text) - len(held)]
        both = text.count("\r\n")
        counts = {"\r\n": both, "\n": text.count("\n") - both, "\r": text.count("\r") - both if cr_ends else 0}
        seen |= {end for end, count in counts.items() if count}
        text = text.replace("\r\n", "\n") if both else text
        yield text.replace("\r", "\n") if cr_ends else text


def newline_chunks(fd: int, encoding: Encoding, seen: set[str]) -> Iterator[str]:
    """Yield the text of an open file in chunks, with newlines as line ends. `seen`: as in `with_newlines`."""
    start = os.pread(fd, SAMPLE_BYTES, 0).decode(encoding.name, KEEP)
    return with_newlines(decode_chunks(fd, encoding), cr_ends=has_cr_ends(start), seen=seen)


def read(place: ResolvedPath, selection: Selection, asked: str | None = None) -> FileText:
    """Return selected text of a file, at most 1 Mi characters. `asked`: its encoding, if the caller knows it.

    Raises:
        Failure: The file is binary, or the lines are too far into it.
        OSError: The operating system refused.
    """
    fd, found = open_regular(place)
    try:
        encoding = file_encoding(fd, place.given, asked)
        seen: set[str] = set()
        chunks = newline_chunks(fd, encoding, seen)
        reader = _Lines(selection, count_on=0 < found.st_size <= _COUNT_BYTES)
        deadline = time.monotonic() + _SECONDS
        complete = True
        for chunk in chunks:
            if not reader.take(chunk):
                complete = False
                break
            if time.monotonic() > deadline:
                raise Failure(413, f"this is too far into the file for file_read: use sed or tail -c: {place.given}")
        return reader.text(encoding, frozenset(seen), complete=complete)
    finally:
        os.close(fd)


@dataclass
class _Lines:
    """Collects the selected text from chunks."""

    selection: Selection
    count_on: bool
    line: int = 0
    """Number of the line that contains the next character."""
    at_line_start: bool = True
    kept: list[str] = field(default_factory=list[str])
    size: int = 0
    selected: int = 0
    full: bool = False

    def take(self, chunk: str) -> bool:
        """Add a chunk and return whether more is needed."""
        newlines = chunk.count("\n")
        if self.line + newlines >= self.selection.start_line and not self._past_end():
            self._collect(chunk, newlines)
        self.line += newlines
        if chunk:
            self.at_line_start = chunk.endswith("\n")
        return self.count_on or not (self.full or self._past_end())

    def _past_end(self) -> bool:
        end_line, end_char = self.selection.end_line, self.selection.end_char
        return (end_line is not None and self.line >= end_line) or (end_char is not None and self.selected >= end_char)

    def _collect(self, chunk: str, newlines: int) -> None:
        position = _after_newlines(chunk, 0, self.selection.start_line - self.line)
        stop, end = len(chunk), self.selection.end_line
        if end is not None and self.line + newlines >= end:
            stop = _after_newlines(chunk, position, end - max(self.line, self.selection.start_line))
        before, self.selected = self.selected, self.selected + stop - position
        if self.full:
            return
        first = max(self.selection.start_char - before, 0)
        last = stop - position if self.selection.end_char is None else self.selection.end_char - before
        piece = chunk[position + first : min(position + last, stop)]
        self.kept.append(piece)
        self.size += len(piece)
        self.full = self.size > MAX_CHARACTERS

    def text(self, encoding: Encoding, line_ends: frozenset[str], *, complete: bool) -> FileText:
        content = "".join(self.kept)
        next_line = next_char = None
        if self.full:
            start = self.selection.start_char
            cut = 0 if start else content.rfind("\n", 0, MAX_CHARACTERS) + 1
            content = content[: cut or MAX_CHARACTERS]
            next_line = self.selection.start_line + (content.count("\n") if cut else 0)
            next_char = None if cut else start + MAX_CHARACTERS
        content, invalid = re.subn(f"[{KEPT}]", "\ufffd", content)
        return FileText(
            content=content,
            encoding=encoding,
            line_count=self.line + (0 if self.at_line_start else 1) if complete else None,
            selected=self.selected,
            next_line=next_line,
            next_char=next_char,
            line_ends=line_ends,
            invalid=invalid,
        )


def _after_newlines(text: str, position: int, count: int) -> int:
    for _ in range(count):
        position = text.find("\n", position) + 1
    return position


Locate = Callable[[int, int, Encoding], int]
"""Returns the position in an open file (descriptor, size in bytes, encoding) that a view must contain."""


def view(place: ResolvedPath, locate: Locate, asked: str | None = None) -> str | None:
    """Return the text of a file, at most `VIEW_BYTES` of it, with a mark where it was cut.

    Return None for a file that cannot be shown: the call itself succeeded. `asked`: see `file_encoding`.
    """
    try:
        fd, found = open_regular(place)
        try:
            return _read_view(fd, found.st_size, file_encoding(fd, place.given, asked), locate)
        finally:
            os.close(fd)
    except (Failure, OSError):
        return None


def at_line(line: int) -> Locate:
    """Locate a line by its number, from 0."""

    def locate(fd: int, _size: int, _encoding: Encoding) -> int:
        left = line
        for position, chunk in _positioned_chunks(fd):
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
        for position, chunk in _positioned_chunks(fd):
            found = (kept + chunk).find(wanted)
            if found >= 0:
                return position - len(kept) + found
            kept = chunk[-len(wanted) :]
        return 0

    return locate


def at_end(_fd: int, size: int, _encoding: Encoding) -> int:
    """Locate the end."""
    return size


def _positioned_chunks(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield parts of the file with their positions."""
    position = 0
    while position < _SEARCHED_BYTES and (chunk := os.pread(fd, _CHUNK, position)):
        yield position, chunk
        position += len(chunk)


def _read_view(fd: int, size: int, encoding: Encoding, locate: Locate) -> str:
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
