"""Calls of the file API on one file: their bodies and their implementation without HTTP.

The program for one call offers the same calls (see `process`).
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pydantic import Field

from sandbox.files import images, reading, search, writing
from sandbox.files.paths import ResolvedPath
from sandbox.web import Body, Failure

CallResult = tuple[dict[str, object], str]
"""The data and the message of a response."""


class FileCall(Body):
    """A call on one file."""

    file: str
    sudo: bool | None = None


class ReadCall(FileCall):
    """Read lines `start_line` (from 0) up to, not including, `end_line`."""

    start_line: int | None = Field(default=None, ge=0)
    end_line: int | None = Field(default=None, ge=0)


class WriteCall(FileCall):
    """Write a whole file, or append to it."""

    content: str
    append: bool | None = None
    leading_newline: bool | None = None
    trailing_newline: bool | None = None


class ReplaceCall(FileCall):
    """Replace every `old_str` by `new_str`."""

    old_str: str
    new_str: str


class SearchCall(FileCall):
    """Find the lines that match a regular expression."""

    regex: str


class ImageCall(FileCall):
    """Read a picture, scaled so that no side is longer than `max_side` pixels."""

    max_side: int = Field(default=1024, ge=16, le=2048)


def read(place: ResolvedPath, body: ReadCall) -> CallResult:
    """Read lines. Blocking, like all functions here.

    Raises:
        Failure: The file cannot be read as text.
        OSError: The operating system refused.
    """
    start = body.start_line or 0
    if body.end_line is not None and body.end_line < start:
        raise Failure(400, "end_line is before start_line")
    text = reading.read(place, start, body.end_line)
    data: dict[str, object] = {
        "content": text.content,
        "line_count": text.line_count,
        "file": place.absolute,
        "truncated": text.next_line is not None,
        "encoding": text.encoding,
    }
    return data, _how_to_read_on(text)


def write(place: ResolvedPath, body: WriteCall) -> CallResult:
    """Replace the file atomically, or append to it."""
    content = ("\n" if body.leading_newline else "") + body.content + ("\n" if body.trailing_newline else "")
    written = writing.append(place, content) if body.append else writing.write(place, content)
    return {"file": place.absolute, "bytes_written": written}, ""


def replace(place: ResolvedPath, body: ReplaceCall) -> CallResult:
    """Replace text and store the file atomically."""
    count = writing.replace(place, body.old_str, body.new_str)
    return {"file": place.absolute, "replaced_count": count}, f"replaced {count} occurrence(s)"


def search_in(place: ResolvedPath, body: SearchCall) -> CallResult:
    """Search the file, bounded in time and size."""
    found = search.search(place, body.regex)
    data: dict[str, object] = {
        "file": place.absolute,
        "matches": found.lines,
        "line_numbers": found.numbers,
        "truncated": found.truncated,
    }
    return data, ""


def image(place: ResolvedPath, body: ImageCall) -> CallResult:
    """Read a picture as a JPEG. Only for a process of its own, which it limits."""
    data: dict[str, object] = {"file": place.absolute, "media_type": "image/jpeg"}
    return data | asdict(images.read_image(place, body.max_side)), ""


# A dict cannot express that each function takes its own body, so `run_call` checks it.
CALLS: dict[str, tuple[type[FileCall], Callable[[ResolvedPath, Any], CallResult]]] = {
    "read": (ReadCall, read),
    "write": (WriteCall, write),
    "replace": (ReplaceCall, replace),
    "search": (SearchCall, search_in),
    "image": (ImageCall, image),
}


def run_call(call: str, place: ResolvedPath, body: FileCall) -> CallResult:
    """Run the call with that name."""
    kind, function = CALLS[call]
    if not isinstance(body, kind):
        raise TypeError(f"{call} takes a {kind.__name__}")
    return function(place, body)


def _how_to_read_on(text: reading.FileText) -> str:
    if text.next_line is None:
        return ""
    if text.line_cut:
        return f"this line is longer than can be given at once; the next one is start_line={text.next_line}"
    return f"the file goes on: read on with start_line={text.next_line}"
