"""Search in files, bounded in time and size."""

import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.files.encoding import file_encoding
from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import newline_chunks, open_regular
from sandbox.web import Failure

if TYPE_CHECKING:
    import regex

MAX_MATCHES = 200
"""Maximum number of matching lines."""
MAX_SECONDS = 5.0
"""Maximum time of one search, in seconds."""
_MAX_SEARCHED_LINE = 8 * 1024 * 1024
"""Number of characters of a line that are searched."""
_MAX_SHOWN_LINE = 500
"""Maximum number of characters of a matching line to return."""
_MAX_PATTERN = 10_000
"""Maximum length of a pattern, in characters."""


@dataclass
class Matches:
    """Matching lines of at most about 500 characters each, with their numbers from 0."""

    lines: list[str] = field(default_factory=list[str])
    numbers: list[int] = field(default_factory=list[int])
    truncated: bool = False
    """Whether more lines may match."""
    notes: list[str] = field(default_factory=list[str])


def search(place: ResolvedPath, pattern: str) -> Matches:
    """Return the lines of a file in which `pattern` (Python's syntax) occurs.

    Raises:
        Failure: 400 if the pattern is invalid or takes too long.
        OSError: The operating system refused.
    """
    compiled, spans_lines = _compile(pattern)
    fd, _ = open_regular(place)
    try:
        encoding = file_encoding(fd, place.given)
        found = Matches()
        if encoding.is_guess:
            found.notes.append(f"the encoding {encoding.name} is a guess")
        blocks = _blocks(newline_chunks(fd, encoding, set()), found)
        _search_blocks(blocks, compiled, found, spans_lines=spans_lines)
        return found
    finally:
        os.close(fd)


def _compile(pattern: str) -> tuple["regex.Pattern[str]", bool]:
    """Compile a pattern. The flag says whether it can match beyond the end of a line in a text of several lines."""
    import regex  # has a timeout, unlike the standard library; imported here because it is large

    if len(pattern) > _MAX_PATTERN:
        raise Failure(400, "the regex is too long")
    bare = _ESCAPE.sub("", pattern)
    if _RECURSION.search(bare):
        raise Failure(400, "the regex calls itself or a group of it, which is not supported")
    if math.prod(min(int(count[:7]), _MAX_REPEATS + 1) or 1 for count in _COUNT.findall(bare)) > _MAX_REPEATS:
        raise Failure(400, f"the counts of the regex multiply to more than {_MAX_REPEATS} repeats")
    try:
        compiled = regex.compile(pattern)
        within_lines = _keep_within_lines(pattern)
        if within_lines is None:
            return compiled, True
        return regex.compile(within_lines, regex.MULTILINE), False
    except (regex.error, OverflowError, RecursionError, MemoryError) as error:
        raise Failure(400, f"not a valid regex: {error}") from error


_MAX_REPEATS = 100_000
"""Maximum product of the counts `{n}` of a pattern: to compile it takes 300 bytes for each of the repeats."""
_ESCAPE = re.compile(r"\\.", re.DOTALL)
_COUNT = re.compile(r"\{(\d+)")
_RECURSION = re.compile(r"\(\?(?:R|[+-]?\d|&|P>)")
"""Finds calls of groups, which take memory without end and do not heed the timeout."""
_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[A-Za-z-]*|\{[A-Za-z]|.", re.DOTALL)
_WITHIN_LINES = {"\\s": r"[^\S\n]", "\\W": r"[^\w\n]", "\\D": r"[^\d\n]", "\\A": "^", "\\Z": "$", "\\z": "$"}
_MAY_SPAN_LINES = re.compile(r"\\[nrxuUNpP0RXKGL]|\(\?[imux-]*[smx]|\{[A-Za-z]|[\x00-\x1f]")
_MAY_HOLD_NEWLINE = re.compile(r"\\[sWDnrxuUNpP0]|\[:|[\x00-\x1f]")


def _keep_within_lines(pattern: str) -> str | None:
    """Return a pattern that matches the same in each line of a text; None if that is not certain.

    To search a large text at once is much faster than to search each of its lines.
    """
    parts: list[str] = []
    for part in _PARTS.findall(pattern):
        if part.startswith("[^") and part.endswith("]") and "[:" not in part:
            parts.append(f"{part[:-1]}\\n]")
        elif len(part) > 1 and part.startswith("["):
            if _MAY_HOLD_NEWLINE.search(part):
                return None
            parts.append(part)
        elif _MAY_SPAN_LINES.match(part):
            return None
        else:
            parts.append(_WITHIN_LINES.get(part) or part)
    return "".join(parts)


def _search_blocks(blocks: Iterable[str], compiled: "regex.Pattern[str]", found: Matches, *, spans_lines: bool) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    number, began = 0, time.monotonic()
    find = _find_by_line if spans_lines else _find_by_block
    try:
        for block in blocks:
            began, counted = time.monotonic(), 0
            if began > deadline:
                raise TimeoutError
            for start, end, at in find(block, compiled, deadline):
                if len(found.lines) == MAX_MATCHES:
                    found.truncated = True
                    return
                found.numbers.append(number + block.count("\n", counted, start))
                found.lines.append(_shown(block[start:end], at - start))
                number, counted = found.numbers[-1], start
            number += block.count("\n", counted) + 1
    except MemoryError as error:
        raise Failure(400, f"the regex takes too much memory near line {number}") from error
    except TimeoutError as error:
        if time.monotonic() - began > MAX_SECONDS / 2:
            reason = f"the regex did not finish within {MAX_SECONDS:g} s near line {number}"
            raise Failure(400, f"{reason}: it tries too many ways, avoid repeats in repeats such as (a+)+") from error
        found.truncated = True
        found.notes.append(
            f"the time of {MAX_SECONDS:g} s ended near line {number}, the lines from there were not searched: use grep"
        )


Place = tuple[int, int, int]
"""Start and end of a line in a block, and where it matches."""


def _find_by_block(block: str, compiled: "regex.Pattern[str]", deadline: float) -> Iterator[Place]:
    position = 0
    # `concurrent` releases the interpreter lock, so that a slow pattern does not block the event loop.
    while position <= len(block) and (
        match := compiled.search(block, position, timeout=_time_left(deadline), concurrent=True)
    ):
        start, end = block.rfind("\n", 0, match.start()) + 1, block.find("\n", match.start())
        end = len(block) if end < 0 else end
        yield start, end, match.start()
        position = end + 1


def _find_by_line(block: str, compiled: "regex.Pattern[str]", deadline: float) -> Iterator[Place]:
    start = 0
    for line in block.split("\n"):
        match = compiled.search(line, timeout=_time_left(deadline), concurrent=True)
        if match is not None:
            yield start, start + len(line), start + match.start()
        start += len(line) + 1


def _time_left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _blocks(chunks: Iterable[str], found: Matches) -> Iterator[str]:
    """Yield whole lines, separated by newlines. A line without an end must not fill the memory."""
    rest, skip = "", False
    for chunk in chunks:
        if skip:
            _, end, chunk = chunk.partition("\n")
            skip = not end
        whole, newline, rest = (rest + chunk).rpartition("\n")
        if newline:
            yield whole
        if len(rest) > _MAX_SEARCHED_LINE:
            found.notes.append(
                f"of a very long line only the first {len(rest):,} characters were searched: use grep -o"
            )
            yield rest
            rest, skip = "", True
    if rest:
        yield rest


def _shown(line: str, at: int) -> str:
    if len(line) <= _MAX_SHOWN_LINE:
        return line
    start = max(0, at - _MAX_SHOWN_LINE // 4)
    end = start + _MAX_SHOWN_LINE
    return f"{f'[from character {start}] ' if start else ''}{line[start:end]}{'...' if end < len(line) else ''}"
