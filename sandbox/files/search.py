"""Looking into files and folders, with bounds on time and amount."""

import fnmatch
import heapq
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.failure import Failure
from sandbox.files.paths import Place
from sandbox.files.reading import decoded, file_encoding, open_regular

MOST_MATCHES = 200
MOST_FILES = 1000
MOST_ENTRIES = 1000
SECONDS = 5.0
_LINE_SEARCHED = 100_000
_LINE_SHOWN = 500
_MOST_PATTERN = 10_000


@dataclass(frozen=True)
class Matches:
    """Matching lines, each about 500 characters at most, with their 0-based numbers."""

    lines: list[str]
    numbers: list[int]
    truncated: bool


def search(place: Place, pattern: str) -> Matches:
    """The lines of a file in which `pattern` (Python's syntax) occurs. Failure 400 for a bad pattern or one that takes
    too long; raises OSError."""
    import regex  # has a timeout, which the standard library's has not; loaded only here, since it is large

    if len(pattern) > _MOST_PATTERN:
        raise Failure(400, "the regex is too long")
    try:
        compiled = regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise Failure(400, f"not a valid regex: {error}") from error
    deadline = time.monotonic() + SECONDS
    lines: list[str] = []
    numbers: list[int] = []
    try:
        for number, line in enumerate(_lines(place, deadline)):
            left = max(deadline - time.monotonic(), 0.001)
            # `concurrent` lets go of the interpreter's lock, so that the event loop runs beside a slow pattern.
            found = compiled.search(line, timeout=left, concurrent=True)
            if found is None:
                continue
            if len(lines) == MOST_MATCHES:
                return Matches(lines, numbers, truncated=True)
            lines.append(_shown(line, found.start()))
            numbers.append(number)
    except TimeoutError as error:
        raise Failure(
            400, f"the regex did not finish within {SECONDS:g} s: make it simpler, or use grep on a part of the file"
        ) from error
    return Matches(lines, numbers, truncated=False)


def _lines(place: Place, deadline: float) -> Iterator[str]:
    fd, found = open_regular(place)
    try:
        encoding = file_encoding(fd, found.st_size, place.said)
        rest = ""
        for chunk in decoded(fd, encoding):
            *whole, rest = (rest + chunk).split("\n")
            for line in whole:
                yield line.removesuffix("\r")[:_LINE_SEARCHED]
            rest = rest[: 2 * _LINE_SEARCHED]  # a line without an end must not fill the memory
            if time.monotonic() > deadline:
                raise TimeoutError
        if rest:
            yield rest[:_LINE_SEARCHED]
    finally:
        os.close(fd)


def _shown(line: str, at: int) -> str:
    if len(line) <= _LINE_SHOWN:
        return line
    start = max(0, at - _LINE_SHOWN // 4)
    piece = line[start : start + _LINE_SHOWN]
    return f"{'...' if start else ''}{piece}{'...' if start + _LINE_SHOWN < len(line) else ''}"


def find(place: Place, glob: str) -> tuple[list[str], bool]:
    """Paths below a folder that match, folders with a final slash; and whether some may be missing (more than 1000, or
    5 s went by). A glob without a slash is matched with names at any depth, one with slashes with paths relative to
    the folder, `**` being any number of folders. Links to folders are not followed. Raises Failure, OSError."""
    segments = _segments(glob)
    if not os.path.isdir(place.real):
        raise Failure(404, f"no such folder: {place.said}")
    deadline = time.monotonic() + SECONDS
    found: list[str] = []
    folders: deque[tuple[str, ...]] = deque([()])
    while folders:
        folder = folders.popleft()
        for name, is_folder in _children(os.path.join(place.real, *folder)):
            parts = (*folder, name)
            if _matches(parts, segments):
                if len(found) == MOST_FILES:
                    return found, True
                found.append(os.path.join(place.shown, *parts) + ("/" if is_folder else ""))
            if is_folder:
                folders.append(parts)
            if time.monotonic() > deadline:
                return found, True
    return found, False


def _segments(glob: str) -> list[re.Pattern[str] | None]:
    if not glob or "\0" in glob or len(glob) > _MOST_PATTERN:
        raise Failure(400, "the glob is empty, too long or holds a NUL character")
    parts = [part for part in glob.removeprefix("./").split("/") if part]
    parts = ["**", *parts] if "/" not in glob else parts
    # fnmatch writes patterns that do not backtrack over several stars.
    return [None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts]


def _matches(parts: tuple[str, ...], segments: list[re.Pattern[str] | None]) -> bool:
    # reachable[i]: the first i segments can match the parts seen so far.
    reachable = [True] + [False] * len(segments)
    for index, segment in enumerate(segments):
        reachable[index + 1] = reachable[index] and segment is None
    for part in parts:
        previous, reachable = reachable, [False] * (len(segments) + 1)
        for index, segment in enumerate(segments):
            if segment is None:
                reachable[index + 1] = previous[index + 1] or reachable[index]
                reachable[index] = reachable[index] or previous[index]
            elif previous[index] and segment.match(part):
                reachable[index + 1] = True
    return reachable[-1]


def _children(folder: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []  # unreadable, or gone by now


def list_folder(place: Place) -> tuple[list[dict[str, object]], bool]:
    """The first 1000 entries of a folder by name, and whether there are more. Raises Failure, OSError."""
    if os.path.exists(place.real) and not os.path.isdir(place.real):
        raise Failure(400, f"not a folder: {place.said}")
    with os.scandir(place.real) as entries:
        names = heapq.nsmallest(MOST_ENTRIES + 1, (entry.name for entry in entries))
    return [_entry(place, name) for name in names[:MOST_ENTRIES]], len(names) > MOST_ENTRIES


def _entry(place: Place, name: str) -> dict[str, object]:
    size, modified, kind = 0, 0.0, "other"
    try:
        found = os.lstat(os.path.join(place.real, name))
        size, modified = found.st_size, found.st_mtime
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(
            stat.S_IFMT(found.st_mode), "other"
        )
    except OSError:
        pass  # gone by now
    return {
        "name": name,
        "path": os.path.join(place.shown, name),
        "kind": kind,
        "size": size,
        "modified": modified,
    }
