"""The file toolkit: text files in the session's sandbox, and pictures for a model that sees."""

from collections.abc import Awaitable, Callable

from pydantic import Field

from app.domain.errors import SandboxFailure
from app.domain.models.sandbox import FileChange, FileText
from app.domain.models.tool import Image, JsonObject, SavedText, ToolResult
from app.domain.services.tools.base import I, Text, Tool, ToolContext, ToolInput, clip, function_tool

MAX_IMAGE_SIDE = 1_024
"""Longest side of a picture that the model is shown, in pixels. Such a picture costs about 1,000 to 1,400 tokens."""


class _File(ToolInput):
    file: str = Field(min_length=1)
    sudo: bool = False


class _TextFile(_File):
    encoding: str | None = None


class _Read(_TextFile):
    start_line: int | None = Field(None, ge=0, description="From 0")
    end_line: int | None = Field(None, ge=0, description="Exclusive")
    start_char: int | None = Field(None, ge=0)
    end_char: int | None = Field(None, ge=0)


class _WriteFile(_TextFile):
    content: Text
    append: bool = False
    leading_newline: bool = False
    trailing_newline: bool = False


class _Replace(_TextFile):
    old_str: str = Field(min_length=1)
    new_str: str


class _Search(_File):
    regex: str = Field(min_length=1)


class _Find(ToolInput):
    path: str = Field(min_length=1)
    glob: str = Field(min_length=1)


class _Image(ToolInput):
    file: str = Field(min_length=1, description="JPEG, PNG, GIF, WebP, BMP or TIFF")


async def _read(args: _Read, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    found = await sandbox.file_read(
        args.file,
        start=args.start_line,
        end=args.end_line,
        sudo=args.sudo,
        start_char=args.start_char,
        end_char=args.end_char,
        encoding=args.encoding,
    )
    text = clip(found.content)
    data: dict[str, object] = {
        "file": found.file,
        "content": text,
        "line_count": found.line_count,
        "truncated": found.truncated or len(found.content) > len(text),
    }
    return ToolResult(
        text=_with_note(found.content, found.note) or "[the file is empty]",
        saved=SavedText(file=args.file, first_line=args.start_line or 0, first_char=args.start_char or 0),
        data=data | _encoding(found),
        content=_content(found.file, found.view, text),
    )


def _with_note(text: str, note: str) -> str:
    return "\n".join(filter(None, (text, f"[{note}]"))) if note else text


def _encoding(found: FileText | FileChange) -> dict[str, object]:
    return {"encoding": found.encoding, "encoding_is_guess": found.encoding_is_guess}


def _content(file: str, view: str | None, otherwise: str) -> JsonObject:
    """Return what clients show of a call: the view of the file, or another text if the file has none."""
    return {"content": clip(otherwise)} if view is None else {"content": view, "file": file}


async def _write(args: _WriteFile, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    text = ("\n" if args.leading_newline else "") + args.content + ("\n" if args.trailing_newline else "")
    written = await sandbox.file_write(args.file, text, append=args.append, sudo=args.sudo, encoding=args.encoding)
    message = f"{'appended' if args.append else 'wrote'} {written.count} bytes to {written.file}"
    return ToolResult(
        text=_with_note(message, written.note),
        message=message,
        data={"file": written.file, "bytes_written": written.count} | _encoding(written),
        content=_content(written.file, written.view, text),
    )


async def _replace(args: _Replace, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    changed = await sandbox.file_replace(args.file, args.old_str, args.new_str, sudo=args.sudo, encoding=args.encoding)
    message = f"replaced {changed.count} {'occurrence' if changed.count == 1 else 'occurrences'}"
    return ToolResult(
        text=_with_note(message, changed.note),
        message=message,
        data={"file": changed.file, "replaced_count": changed.count} | _encoding(changed),
        content=_content(changed.file, changed.view, args.new_str),
    )


async def _search(args: _Search, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    found = await sandbox.file_search(args.file, args.regex, sudo=args.sudo)
    lines = [f"{number}: {line}" for number, line in zip(found.line_numbers, found.matches, strict=True)]
    more = "more lines may match" if found.truncated else "" if lines else "no line matches"
    text = _with_note("\n".join(lines), "; ".join(filter(None, (more, found.note))))
    return ToolResult(
        text=text,
        message=f"{len(lines)} lines match",
        data={"file": found.file, "matches": list(found.matches), "line_numbers": list(found.line_numbers)},
        content=_content(found.file, found.view, text),
    )


async def _find(args: _Find, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    found = await sandbox.file_find(args.path, args.glob)
    notes = [
        "there may be more" if found.truncated else "" if found.files else "nothing found",
        f"{found.unreadable} folder(s) could not be read" if found.unreadable else "",
    ]
    text = _with_note("\n".join(found.files), "; ".join(filter(None, notes)))
    return ToolResult(
        text=text,
        message=f"{len(found.files)} files",
        data={"path": found.path, "files": list(found.files)},
        content={"content": clip(text)},
    )


async def _image(args: _Image, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    found = await sandbox.file_image(args.file, max_side=MAX_IMAGE_SIDE)
    picture = Image.of_jpeg(found.jpeg)
    if picture is None:
        raise SandboxFailure(f"the sandbox returned no picture: {args.file}")
    size = f"{found.original_width} x {found.original_height} pixels"
    scaled = picture.width < found.original_width
    text = f"{size}, shown at {picture.width} x {picture.height}" if scaled else size
    data = {"file": found.file, "width": found.original_width, "height": found.original_height}
    content: dict[str, object] = {"content": text, **data}
    if (address := await context.keep_screenshot(found.jpeg)) is not None:
        content["screenshot"] = address
    return ToolResult(text=text, message=size, data=data, content=content, images=(picture,))


def _no_content(_args: JsonObject, reason: str) -> JsonObject:
    """Return what clients show of a call without result. An empty text would look like an empty file."""
    return {"content": f"[{reason}]"}


def _tool(
    name: str,
    description: str,
    input: type[I],
    function: Callable[[I, ToolContext], Awaitable[ToolResult]],
    *,
    parallel: bool = False,
    needs_vision: bool = False,
) -> Tool:
    return function_tool(
        name,
        "file",
        description,
        input,
        function,
        parallel=parallel,
        needs_vision=needs_vision,
        without_result=_no_content,
    )


TOOLS: tuple[Tool, ...] = (
    _tool("file_read", "Read a text file.", _Read, _read, parallel=True),
    _tool("file_write", "Write a text file; long ones in pieces, with append.", _WriteFile, _write),
    _tool("file_str_replace", "Replace a text everywhere in a file.", _Replace, _replace),
    _tool("file_find_in_content", "Find lines by regex.", _Search, _search, parallel=True),
    _tool("file_find_by_name", "Find files, e.g. **/*.py.", _Find, _find, parallel=True),
    _tool("image_view", "Look at a picture file.", _Image, _image, parallel=True, needs_vision=True),
)
