"""Calls of the file API on one file: their bodies and their implementation without HTTP.

The program for one call offers the same calls (see `process`).
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

from pydantic import Field

from sandbox.files import images, reading, replacing, search, writing
from sandbox.files.encoding import Encoding
from sandbox.files.paths import ResolvedPath
from sandbox.web import Body, Failure

CallResult = tuple[dict[str, object], str]
"""The data and the message of a response."""


class FileCall(Body):
    """A call on one file."""

    file: str
    sudo: bool | None = None
    view: bool | None = None
    """Whether the response also has a `view` of the file for a person (see `reading.view`); null for a binary file."""


class TextCall(FileCall):
    """A call on the text of a file. `encoding`: the name of a Python codec; absent to detect it."""

    encoding: str | None = Field(default=None, pattern=r"^[A-Za-z0-9 ._:-]{1,40}$")


class ReadCall(TextCall):
    """Read lines `start_line` (from 0) up to, not including, `end_line`; of their text, those characters."""

    start_line: int | None = Field(default=None, ge=0)
    end_line: int | None = Field(default=None, ge=0)
    start_char: int | None = Field(default=None, ge=0)
    end_char: int | None = Field(default=None, ge=0)


class WriteCall(TextCall):
    """Write a whole file, or append to it."""

    content: str
    append: bool | None = None
    leading_newline: bool | None = None
    trailing_newline: bool | None = None


class ReplaceCall(TextCall):
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
    """Read text. Blocking, like all functions here.

    Raises:
        Failure: The file cannot be read as text.
        OSError: The operating system refused.
    """
    for start, end, name in ((body.start_line, body.end_line, "line"), (body.start_char, body.end_char, "char")):
        if end is not None and end < (start or 0):
            raise Failure(400, f"end_{name} is before start_{name}")
    selection = reading.Selection(
        start_line=body.start_line or 0,
        end_line=body.end_line,
        start_char=body.start_char or 0,
        end_char=body.end_char,
    )
    text = reading.read(place, selection, body.encoding)
    notes = [
        _why_empty(text, selection),
        _how_to_read_on(text),
        _line_ends(text),
        f"{text.invalid} byte(s) are not valid {text.encoding.name}, shown as \ufffd" if text.invalid else "",
        _about_guess(text.encoding),
    ]
    data: dict[str, object] = {
        "content": text.content,
        "line_count": text.line_count,
        "file": place.absolute,
        "truncated": text.next_line is not None,
        "next_line": text.next_line,
        "next_char": text.next_char,
        **_encoding_data(text.encoding),
        "note": "; ".join(filter(None, notes)),
    }
    return data, ""


def write(place: ResolvedPath, body: WriteCall) -> CallResult:
    """Write the whole file, or append to it."""
    content = ("\n" if body.leading_newline else "") + body.content + ("\n" if body.trailing_newline else "")
    written = (writing.append if body.append else writing.write)(place, content, body.encoding)
    data = {"file": place.absolute, "bytes_written": written.count, **_encoding_data(written.encoding)}
    return {**data, "note": written.note or _about_guess(written.encoding)}, ""


def replace(place: ResolvedPath, body: ReplaceCall) -> CallResult:
    """Replace text in the file."""
    written = replacing.replace(place, body.old_str, body.new_str, body.encoding)
    data = {"file": place.absolute, "replaced_count": written.count, **_encoding_data(written.encoding)}
    return {**data, "note": _about_guess(written.encoding)}, ""


def search_in(place: ResolvedPath, body: SearchCall) -> CallResult:
    """Search the file, bounded in time and size."""
    found = search.search(place, body.regex)
    data: dict[str, object] = {
        "file": place.absolute,
        "matches": found.lines,
        "line_numbers": found.numbers,
        "truncated": found.truncated,
        "note": "; ".join(dict.fromkeys(found.notes)),
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
    data, message = function(place, body)
    if body.view:
        asked = body.encoding if isinstance(body, TextCall) else None
        data = {**data, "view": reading.view(place, _locate(body, data), asked)}
    return data, message


def _locate(body: FileCall, data: dict[str, object]) -> reading.Locate:
    """Return where in the file that is which the call was about."""
    match body:
        case WriteCall(append=True):
            return reading.at_end
        case ReplaceCall():
            return reading.at_text(body.new_str)
        case SearchCall():
            return reading.at_line(next(iter(cast("list[int]", data["line_numbers"])), 0))
        case ReadCall():
            return reading.at_line(body.start_line or 0)
        case _:
            return reading.at_line(0)


def _encoding_data(encoding: Encoding) -> dict[str, object]:
    return {"encoding": encoding.name, "encoding_is_guess": encoding.is_guess}


def _about_guess(encoding: Encoding) -> str:
    if not encoding.is_guess:
        return ""
    return f"the encoding {encoding.name} is a guess: pass `encoding` if it is another"


def _why_empty(text: reading.FileText, selection: reading.Selection) -> str:
    if text.content:
        return ""
    if text.line_count == 0:
        return "the file is empty"
    if text.line_count is not None and selection.start_line >= text.line_count:
        return f"the file has {text.line_count} line(s), counted from 0"
    if text.selected and selection.start_char >= text.selected:
        return f"these lines have {text.selected} characters, counted from 0"
    return "nothing lies between start and end, which is exclusive"


def _how_to_read_on(text: reading.FileText) -> str:
    if text.next_line is None:
        return ""
    count = "" if text.line_count is None else f"; the file has {text.line_count} lines"
    position = "" if text.next_char is None else f", start_char={text.next_char}"
    return f"cut here, read on with start_line={text.next_line}{position}{count}"


def _line_ends(text: reading.FileText) -> str:
    names = [name for end, name in reading.LINE_END_NAMES.items() if end in text.line_ends]
    return "" if names in ([], ["LF"]) else f"line ends: {' and '.join(names)}"
