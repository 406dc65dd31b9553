"""Search in files and folders, bounded in time and size."""

import fnmatch
import heapq
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import decode_chunks, file_encoding, open_regular
from sandbox.web import Failure

MAX_MATCHES = 200
"""Maximum number of matching lines."""
MAX_FILES = 1000
"""Maximum number of paths that a glob returns."""
MAX_ENTRIES = 1000
"""Maximum number of entries in a folder listing."""
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


def find(place: ResolvedPath, glob: str) -> tuple[list[str], bool]:
    """Return the matching paths below a folder, and whether some may be missing (limit of files or time).

    A glob without a slash matches names at any depth. A glob with slashes matches paths relative to the folder; `**`
    matches any number of folders. Folders end with a slash. Links to folders are not followed.

    Raises:
        Failure: The folder does not exist, or the glob is invalid.
    """
    segments = _segments(glob)
    if not os.path.isdir(place.real):
        raise Failure(404, f"no such folder: {place.given}")
    deadline = time.monotonic() + MAX_SECONDS
    found: list[str] = []
    folders: deque[tuple[str, ...]] = deque([()])
    while folders:
        folder = folders.popleft()
        for name, is_folder in _children(os.path.join(place.real, *folder)):
            parts = (*folder, name)
            if _matches(parts, segments):
                if len(found) == MAX_FILES:
                    return found, True
                found.append(os.path.join(place.absolute, *parts) + ("/" if is_folder else ""))
            if is_folder:
                folders.append(parts)
            if time.monotonic() > deadline:
                return found, True
    return found, False


def _segments(glob: str) -> list[re.Pattern[str] | None]:
    if not glob or "\0" in glob or len(glob) > _MAX_PATTERN:
        raise Failure(400, "the glob is empty, too long or holds a NUL character")
    parts = [part for part in glob.removeprefix("./").split("/") if part]
    parts = ["**", *parts] if "/" not in glob else parts
    # fnmatch generates patterns that do not backtrack over several stars.
    return [None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts]


def _matches(parts: tuple[str, ...], segments: list[re.Pattern[str] | None]) -> bool:
    # reachable[i]: the first i segments can match the parts so far.
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
        return []  # unreadable or removed


def list_folder(place: ResolvedPath) -> tuple[list[dict[str, object]], bool]:
    """Return the first 1000 entries of a folder by name, and whether there are more.

    Raises:
        Failure: 400 if it is not a folder.
        OSError: The operating system refused.
    """
    if os.path.exists(place.real) and not os.path.isdir(place.real):
        raise Failure(400, f"not a folder: {place.given}")
    with os.scandir(place.real) as entries:
        names = heapq.nsmallest(MAX_ENTRIES + 1, (entry.name for entry in entries))
    return [_entry(place, name) for name in names[:MAX_ENTRIES]], len(names) > MAX_ENTRIES


def _entry(place: ResolvedPath, name: str) -> dict[str, object]:
    size, modified, kind = 0, 0.0, "other"
    try:
        found = os.lstat(os.path.join(place.real, name))
        size, modified = found.st_size, found.st_mtime
        kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(
            stat.S_IFMT(found.st_mode), "other"
        )
    except OSError:
        pass  # removed in the meantime
    return {
        "name": name,
        "path": os.path.join(place.absolute, name),
        "kind": kind,
        "size": size,
        "modified": modified,
    }
