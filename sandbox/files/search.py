"""Search in files, bounded in time and size."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import decode_chunks, file_encoding, open_regular
from sandbox.web import Failure

MAX_MATCHES = 200
"""Maximum number of matching lines."""
MAX_SECONDS = 5.0
"""Maximum time of one search, in seconds."""
_MAX_SEARCHED_LINE = 100_000
"""Number of characters of a line that are searched."""
_MAX_SHOWN_LINE = 500
"""Maximum number of characters of a matching line to return."""
_MAX_PATTERN = 10_000
"""Maximum length of a pattern, in characters."""


@dataclass(frozen=True)
class Matches:
    """Matching lines of at most about 500 characters each, with their numbers from 0."""

    lines: list[str]
    numbers: list[int]
    truncated: bool


def search(place: ResolvedPath, pattern: str) -> Matches:
    """Return the lines of a file in which `pattern` (Python's syntax) occurs.

    Raises:
        Failure: 400 if the pattern is invalid or takes too long.
        OSError: The operating system refused.
    """
    import regex  # has a timeout, unlike the standard library; imported here because it is large

    if len(pattern) > _MAX_PATTERN:
        raise Failure(400, "the regex is too long")
    try:
        compiled = regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise Failure(400, f"not a valid regex: {error}") from error
    deadline = time.monotonic() + MAX_SECONDS
    lines: list[str] = []
    numbers: list[int] = []
    try:
        for number, line in enumerate(_lines(place, deadline)):
            left = max(deadline - time.monotonic(), 0.001)
            # `concurrent` releases the interpreter lock, so that a slow pattern does not block the event loop.
            found = compiled.search(line, timeout=left, concurrent=True)
            if found is None:
                continue
            if len(lines) == MAX_MATCHES:
                return Matches(lines, numbers, truncated=True)
            lines.append(_shown(line, found.start()))
            numbers.append(number)
    except TimeoutError as error:
        raise Failure(
            400,
            f"the regex did not finish within {MAX_SECONDS:g} s: make it simpler, or use grep on a part of the file",
        ) from error
    return Matches(lines, numbers, truncated=False)


def _lines(place: ResolvedPath, deadline: float) -> Iterator[str]:
    fd, found = open_regular(place)
    try:
        encoding = file_encoding(fd, found.st_size, place.given)
        rest = ""
        for chunk in decode_chunks(fd, encoding):
            *whole, rest = (rest + chunk).split("\n")
            for line in whole:
                yield line.removesuffix("\r")[:_MAX_SEARCHED_LINE]
            rest = rest[: 2 * _MAX_SEARCHED_LINE]  # a line without an end must not fill the memory
            if time.monotonic() > deadline:
                raise TimeoutError
        if rest:
            yield rest[:_MAX_SEARCHED_LINE]
    finally:
        os.close(fd)


def _shown(line: str, at: int) -> str:
    if len(line) <= _MAX_SHOWN_LINE:
        return line
    start = max(0, at - _MAX_SHOWN_LINE // 4)
    piece = line[start : start + _MAX_SHOWN_LINE]
    return f"{'...' if start else ''}{piece}{'...' if start + _MAX_SHOWN_LINE < len(line) else ''}"
