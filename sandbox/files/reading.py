"""Reading of text in any encoding and of any size, limited to the requested lines."""

import codecs
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sandbox.files.encoding import SAMPLE_BYTES, Encoding, detect
from sandbox.files.paths import ResolvedPath
from sandbox.web import Failure

MAX_CHARACTERS = 1024 * 1024
"""Maximum number of characters of one read."""
_CHUNK = 256 * 1024
"""Number of bytes to read at once."""
_COUNT_BYTES = 64 * 1024 * 1024
"""Maximum size of a file whose lines are all counted, in bytes."""
_SECONDS = 10.0
"""Maximum time of one read, in seconds."""


@dataclass
class FileText:
    """Lines of a file. `line_count` is None if the file was not read to its end."""

    content: str
    line_count: int | None
    encoding: str
    next_line: int | None
    """Line to continue with; None if nothing was left out."""
    line_cut: bool = False
    """Whether a line was cut because it exceeds the limit."""


def open_regular(place: ResolvedPath) -> tuple[int, os.stat_result]:
    """Open a regular file for reading. Pipes, devices and folders could block or never end.

    Raises:
        Failure: 400 if it is not a regular file.
        OSError: The operating system refused.
    """
    # Does not wait for the other end of a pipe. The open file is checked, so it cannot be swapped.
    fd = os.open(place.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        return fd, found
    os.close(fd)
    if stat.S_ISDIR(found.st_mode):
        raise Failure(400, f"is a folder: {place.given}")
    raise Failure(400, f"not a regular file but a pipe, socket or device: {place.given}")


def file_encoding(fd: int, size: int, path: str) -> Encoding:
    """Return the encoding of an open file. Its position stays at the start."""
    sample = os.pread(fd, SAMPLE_BYTES, 0)
    return detect(sample, size, path, whole=len(sample) < SAMPLE_BYTES)


def decode_chunks(fd: int, encoding: Encoding, *, errors: str = "replace") -> Iterator[str]:
    """Yield the text of an open file in chunks, without its byte order mark."""
    decoder = codecs.getincrementaldecoder(encoding.name)(errors)
    os.lseek(fd, len(encoding.bom), os.SEEK_SET)
    while data := os.read(fd, _CHUNK):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def read(place: ResolvedPath, start: int, end: int | None) -> FileText:
    """Return the lines `start` (from 0) up to, not including, `end`, with newline line ends, at most 1 Mi characters.

    Raises:
        Failure: The file is binary, or the lines are too far into it.
        OSError: The operating system refused.
    """
    fd, found = open_regular(place)
    try:
        encoding = file_encoding(fd, found.st_size, place.given)
        reader = _Lines(start, end, count_on=0 < found.st_size <= _COUNT_BYTES)
        deadline = time.monotonic() + _SECONDS
        complete = True
        for chunk in decode_chunks(fd, encoding):
            if not reader.take(chunk):
                complete = False
                break
            if time.monotonic() > deadline:
                raise Failure(413, f"line {start} is too far into this file: {place.given}")
        return reader.text(encoding.name, complete=complete)
    finally:
        os.close(fd)


@dataclass
class _Lines:
    """Collects the requested lines from chunks of text."""

    start: int
    end: int | None
    count_on: bool
    line: int = 0
    """Number of the line that contains the next character."""
    at_line_start: bool = True
    kept: list[str] = field(default_factory=list[str])
    size: int = 0
    full: bool = False

    def take(self, chunk: str) -> bool:
        """Add a chunk and return whether more is needed."""
        newlines = chunk.count("\n")
        if self.line + newlines >= self.start and not self._past_end() and not self.full:
            self._collect(chunk)
        self.line += newlines
        if chunk:
            self.at_line_start = chunk.endswith("\n")
        return self.count_on or not (self.full or self._past_end())

    def _past_end(self) -> bool:
        return self.end is not None and self.line >= self.end

    def _collect(self, chunk: str) -> None:
        line, position = self.line, 0
        while line < self.start:
            position = chunk.find("\n", position) + 1
            line += 1
        stop = len(chunk)
        if self.end is not None and self.line + chunk.count("\n") >= self.end:
            stop = position
            while line < self.end:
                stop = chunk.find("\n", stop) + 1
                line += 1
        piece = chunk[position:stop]
        self.kept.append(piece)
        self.size += len(piece)
        self.full = self.size > MAX_CHARACTERS

    def text(self, encoding: str, *, complete: bool) -> FileText:
        content = "".join(self.kept).replace("\r\n", "\n")
        count = self.line + (0 if self.at_line_start else 1) if complete else None
        if not self.full:
            return FileText(content, count, encoding, None)
        cut = content.rfind("\n", 0, MAX_CHARACTERS) + 1
        if cut == 0:
            return FileText(content[:MAX_CHARACTERS], count, encoding, self.start + 1, line_cut=True)
        content = content[:cut]
        return FileText(content, count, encoding, self.start + content.count("\n"))
