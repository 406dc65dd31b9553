"""Reading text: any encoding, any size, only what was asked for."""

import codecs
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from sandbox.failure import Failure
from sandbox.files.encoding import SAMPLE_BYTES, Encoding, detect
from sandbox.files.paths import Place

MOST_CHARACTERS = 1024 * 1024
_CHUNK = 256 * 1024
_COUNT_BYTES = 64 * 1024 * 1024
"""Up to this size the lines after the wanted ones are counted too."""
_SECONDS = 10.0


@dataclass
class Text:
    """Lines `start_line` .. of a file. `line_count` is None when the file was not read to its end."""

    content: str
    line_count: int | None
    encoding: str
    next_line: int | None
    """Where to read on; None when nothing was left out."""
    line_cut: bool = False
    """A line longer than can be given at once was cut."""


def open_regular(place: Place) -> tuple[int, os.stat_result]:
    """A descriptor for reading a regular file; Failure 400 for a pipe, device or folder, which could block or never
    end. Raises OSError."""
    # Not to wait for the other end of a pipe; what it is, is looked at once it is open, so nobody can swap it.
    fd = os.open(place.real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode):
        return fd, found
    os.close(fd)
    if stat.S_ISDIR(found.st_mode):
        raise Failure(400, f"is a folder: {place.said}")
    raise Failure(400, f"not a regular file but a pipe, socket or device: {place.said}")


def file_encoding(fd: int, size: int, path: str) -> Encoding:
    """The encoding of an open file, whose position stays at its start."""
    sample = os.pread(fd, SAMPLE_BYTES, 0)
    return detect(sample, size, path, whole=len(sample) < SAMPLE_BYTES)


def decoded(fd: int, encoding: Encoding, *, errors: str = "replace") -> Iterator[str]:
    """The text of an open file in chunks, after its byte order mark."""
    decoder = codecs.getincrementaldecoder(encoding.name)(errors)
    os.lseek(fd, len(encoding.bom), os.SEEK_SET)
    while data := os.read(fd, _CHUNK):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def read(place: Place, start: int, end: int | None) -> Text:
    """The lines `start` (0-based) up to `end` (exclusive), with `\\n` line ends, at most 1 Mi characters.

    Raises Failure, OSError."""
    fd, found = open_regular(place)
    try:
        encoding = file_encoding(fd, found.st_size, place.said)
        reader = _Lines(start, end, count_on=0 < found.st_size <= _COUNT_BYTES)
        deadline = time.monotonic() + _SECONDS
        complete = True
        for chunk in decoded(fd, encoding):
            if not reader.take(chunk):
                complete = False
                break
            if time.monotonic() > deadline:
                raise Failure(413, f"line {start} is too far into this file: {place.said}")
        return reader.text(encoding.name, complete=complete)
    finally:
        os.close(fd)


@dataclass
class _Lines:
    """Collects the wanted lines from chunks of text."""

    start: int
    end: int | None
    count_on: bool
    line: int = 0
    """The line that the next character belongs to."""
    at_line_start: bool = True
    kept: list[str] = field(default_factory=list[str])
    size: int = 0
    full: bool = False

    def take(self, chunk: str) -> bool:
        """Whether more is wanted."""
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
        self.full = self.size > MOST_CHARACTERS

    def text(self, encoding: str, *, complete: bool) -> Text:
        content = "".join(self.kept).replace("\r\n", "\n")
        count = self.line + (0 if self.at_line_start else 1) if complete else None
        if not self.full:
            return Text(content, count, encoding, None)
        cut = content.rfind("\n", 0, MOST_CHARACTERS) + 1
        if cut == 0:
            return Text(content[:MOST_CHARACTERS], count, encoding, self.start + 1, line_cut=True)
        content = content[:cut]
        return Text(content, count, encoding, self.start + content.count("\n"))
