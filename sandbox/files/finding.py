"""Listing of folders and search for file names, bounded in time and size."""

import fnmatch
import heapq
import os
import re
import stat
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from sandbox.files.paths import ResolvedPath
from sandbox.web import Failure

MAX_FILES = 1000
"""Maximum number of paths that a glob returns."""
MAX_ENTRIES = 1000
"""Maximum number of entries in a folder listing."""
MAX_SECONDS = 5.0
"""Maximum time of one search, in seconds."""
_MAX_GLOB = 10_000
"""Maximum length of a glob, in characters."""
_MAX_ALTERNATIVES = 256
"""Maximum number of globs that the braces of one stand for."""


@dataclass
class Found:
    """Paths that match a glob."""

    files: list[str]
    truncated: bool = False
    """Whether some may be missing because of the limit of files or time."""
    unreadable: int = 0
    """Number of folders that could not be read."""


def find(place: ResolvedPath, glob: str) -> Found:
    r"""Return the matching paths below a folder, hidden ones too. Folders end with a slash; links are not followed.

    A glob without a slash matches names at any depth. A glob with slashes matches paths relative to the folder. `*`,
    `?`, `[a-z]`, `[!a-z]`, `{a,b}`, `{1..9}` and `\` work as in Bash; `**` as a whole segment matches any number of
    folders, and a slash at the end matches folders only. Case counts.

    Raises:
        Failure: The folder does not exist, or the glob is invalid or not supported.
        OSError: The operating system refused.
    """
    patterns = [_Pattern(each) for each in _expand_braces(_checked(glob))]
    if not os.path.isdir(place.real):
        if os.path.lexists(place.real):
            raise Failure(400, f"not a folder, the glob is for a folder: {place.given}")
        raise Failure(404, f"no such folder: {place.given}")
    os.scandir(place.real).close()  # raises if it cannot be read
    deadline = time.monotonic() + MAX_SECONDS
    found = Found([])
    folders: deque[tuple[str, ...]] = deque([()])
    while folders:
        folder = folders.popleft()
        for name, is_folder in _children(os.path.join(place.real, *folder), found):
            parts = (*folder, name)
            if any(pattern.matches(parts, is_folder=is_folder) for pattern in patterns):
                found.files.append(os.path.join(place.absolute, *parts) + ("/" if is_folder else ""))
            if is_folder and place.allows(os.path.join(place.real, *parts)):
                folders.append(parts)
            if len(found.files) > MAX_FILES or time.monotonic() > deadline:
                found.files, found.truncated = found.files[:MAX_FILES], True
                return found
    return found


def _checked(glob: str) -> str:
    """Return a glob without `./` at its start, if its syntax is supported."""
    reason = ""
    if not glob.strip() or "\0" in glob or len(glob) > _MAX_GLOB:
        reason = "the glob is empty, too long or holds a NUL character"
    elif glob.startswith(("/", "~")) or ".." in glob.split("/"):
        reason = "a glob is relative to `path` and cannot leave it: name the folder in `path`"
    elif glob.startswith("!"):
        reason = "a glob that begins with ! is not supported: it matches what to find, not what to leave out"
    elif re.search(r"(?<!\\)(?:[@+!]\(|[*?]\([^)]*\|)", glob):
        reason = "extended globs such as @(a|b) are not supported: use {a,b}"
    elif "[[:" in glob or "[![:" in glob or "[^[:" in glob:
        reason = "classes such as [:alpha:] are not supported: use [a-zA-Z]"
    if reason:
        raise Failure(400, reason)
    return glob.removeprefix("./")


_RANGE = re.compile(r"(?:(-?\d{1,9})\.\.(-?\d{1,9})|([A-Za-z])\.\.([A-Za-z]))(?:\.\.-?([1-9]\d{0,8}))?")


def _expand_braces(glob: str) -> list[str]:
    """Return the globs that the braces stand for. Braces without a comma or a range are characters, as in Bash."""
    # Each open group: its alternatives so far, the last of which is being read. The first is the glob itself.
    groups: list[list[list[str]]] = [[[""]]]
    for part in re.findall(r"\\.|\[[!^]?\]?[^\]/]*\]|.", glob, re.DOTALL):
        if part == "{":
            groups.append([[""]])
        elif part == "," and len(groups) > 1:
            groups[-1].append([""])
        elif part == "}" and len(groups) > 1:
            group = groups.pop()
            _extend(groups[-1], _alternatives(group))
        else:
            _extend(groups[-1], [part])
    if len(groups) > 1:
        raise Failure(400, "a brace of the glob is not closed: write \\{ for the character")
    return groups[0][0]


def _alternatives(group: list[list[str]]) -> list[str]:
    if len(group) > 1:
        return [each for alternative in group for each in alternative]
    found = _RANGE.fullmatch(group[0][0]) if len(group[0]) == 1 else None
    if found is None:
        return [f"{{{each}}}" for each in group[0]]
    first, last = (ord(found[3]), ord(found[4])) if found[3] else (int(found[1]), int(found[2]))
    direction = 1 if last >= first else -1
    numbers = range(first, last + direction, direction * int(found[5] or 1))[: _MAX_ALTERNATIVES + 1]
    if found[3]:
        return [chr(number) for number in numbers]
    padded = any(re.match(r"-?0\d", end) for end in found.group(1, 2))
    width = max(map(len, found.group(1, 2))) if padded else 0
    return [f"{number:0{width}}" for number in numbers]


def _extend(group: list[list[str]], ends: Iterable[str]) -> None:
    group[-1] = [start + end for start, end in product(group[-1], ends)]
    if sum(map(len, group)) > _MAX_ALTERNATIVES:
        raise Failure(400, f"the braces stand for more than {_MAX_ALTERNATIVES} globs")


class _Pattern:
    """A glob without braces."""

    def __init__(self, glob: str) -> None:
        segments = re.findall(r"(?:\\.|[^/\\]|\\$)+", glob, re.DOTALL)
        self._folders_only = glob.endswith("/")
        self._segments = [None if each == "**" else _segment(each) for each in segments]
        if "/" not in glob:
            self._segments.insert(0, None)

    def matches(self, parts: tuple[str, ...], *, is_folder: bool) -> bool:
        """Return whether a path matches."""
        if self._folders_only and not is_folder:
            return False
        # reachable[i]: the first i segments can match the parts so far.
        reachable = [True] + [False] * len(self._segments)
        for index, segment in enumerate(self._segments):
            reachable[index + 1] = reachable[index] and segment is None
        for part in parts:
            previous, reachable = reachable, [False] * (len(self._segments) + 1)
            for index, segment in enumerate(self._segments):
                if segment is None:
                    reachable[index + 1] = previous[index + 1] or reachable[index]
                    reachable[index] = reachable[index] or previous[index]
                elif previous[index] and segment.match(part):
                    reachable[index + 1] = True
        return reachable[-1]


@lru_cache(256)
def _segment(glob: str) -> re.Pattern[str]:
    # fnmatch does not know backslashes and `[^`. Its patterns do not backtrack over several stars.
    glob = re.sub(r"\\(.)", lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], glob)
    return re.compile(fnmatch.translate(glob.replace("[^", "[!")))


def _children(folder: str, found: Found) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except PermissionError:
        found.unreadable += 1
    except OSError:
        pass  # removed
    return []


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
