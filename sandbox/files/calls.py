"""The calls of the file API that read and write one file: their bodies and what they do, with no HTTP in them.

They are also what the program run by sudo can do (see `root`).
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from sandbox.failure import Failure
from sandbox.files import reading, search, writing
from sandbox.files.paths import Place
from sandbox.web import Body

Answer = tuple[dict[str, object], str]
"""What is answered: the data and a message."""


class OneFile(Body):
    """A call on a file."""

    file: str
    sudo: bool | None = None


class Read(OneFile):
    """Lines `start_line` (0-based, inclusive) to `end_line` (exclusive)."""

    start_line: int | None = Field(default=None, ge=0)
    end_line: int | None = Field(default=None, ge=0)


class Write(OneFile):
    """A whole file, or more of it."""

    content: str
    append: bool | None = None
    leading_newline: bool | None = None
    trailing_newline: bool | None = None


class Replace(OneFile):
    """Every `old_str` becomes `new_str`."""

    old_str: str
    new_str: str


class Search(OneFile):
    """Lines in which the regex occurs."""

    regex: str


def read(place: Place, body: Read) -> Answer:
    """Blocking, as all of these. Raise Failure, OSError."""
    start = body.start_line or 0
    if body.end_line is not None and body.end_line < start:
        raise Failure(400, "end_line is before start_line")
    text = reading.read(place, start, body.end_line)
    data: dict[str, object] = {
        "content": text.content,
        "line_count": text.line_count,
        "file": place.shown,
        "truncated": text.next_line is not None,
        "encoding": text.encoding,
    }
    return data, _how_to_read_on(text)


def write(place: Place, body: Write) -> Answer:
    """Replaces the file at once, or appends."""
    content = ("\n" if body.leading_newline else "") + body.content + ("\n" if body.trailing_newline else "")
    written = writing.append(place, content) if body.append else writing.write(place, content)
    return {"file": place.shown, "bytes_written": written}, ""


def replace(place: Place, body: Replace) -> Answer:
    """Replaces the file at once."""
    count = writing.replace(place, body.old_str, body.new_str)
    return {"file": place.shown, "replaced_count": count}, f"replaced {count} occurrence(s)"


def search_in(place: Place, body: Search) -> Answer:
    """Bounded in time and amount."""
    found = search.search(place, body.regex)
    data: dict[str, object] = {
        "file": place.shown,
        "matches": found.lines,
        "line_numbers": found.numbers,
        "truncated": found.truncated,
    }
    return data, ""


# Each function takes its own body only, which no type can say of a dict; `run` sees to it.
CALLS: dict[str, tuple[type[OneFile], Callable[[Place, Any], Answer]]] = {
    "read": (Read, read),
    "write": (Write, write),
    "replace": (Replace, replace),
    "search": (Search, search_in),
}


def run(call: str, place: Place, body: OneFile) -> Answer:
    """The call of that name."""
    kind, function = CALLS[call]
    if not isinstance(body, kind):
        raise TypeError(f"{call} takes a {kind.__name__}")
    return function(place, body)


def _how_to_read_on(text: reading.Text) -> str:
    if text.next_line is None:
        return ""
    if text.line_cut:
        return f"this line is longer than can be given at once; the next one is start_line={text.next_line}"
    return f"the file goes on: read on with start_line={text.next_line}"
