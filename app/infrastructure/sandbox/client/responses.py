"""Parsers of the sandbox API's response data. A missing field, or one of a wrong type, raises `SandboxUnavailable`."""

from typing import cast

from app.domain.errors import SandboxUnavailable
from app.domain.models.sandbox import (
    ConsoleRecord,
    FileMatches,
    FileText,
    FoundFiles,
    PartStatus,
    ShellState,
    ShellStatus,
)
from app.infrastructure.sandbox.client.api_client import JsonObject


def parse_shell_state(data: JsonObject, shell_id: str) -> ShellState:
    """Parse `{"status", "returncode"?, "output"?, "console"?, "truncated"?, "output_file"?}` of a shell."""
    return ShellState(
        shell_id=shell_id,
        status=_shell_status(data),
        returncode=_optional_int(data, "returncode"),
        output=_str(data, "output", ""),
        console=tuple(_console_record(item) for item in _list(data, "console", optional=True)),
        truncated=data.get("truncated") is True,
        output_file=_str(data, "output_file", ""),
    )


def parse_file_text(data: JsonObject, file: str) -> FileText:
    """Parse `{"content", "file"?, "line_count"?, "truncated"?}`; `file` is the requested path."""
    return FileText(
        file=_str(data, "file", file),
        content=_str(data, "content"),
        line_count=_optional_int(data, "line_count"),
        truncated=data.get("truncated") is True,
    )


def parse_file_matches(data: JsonObject, file: str) -> FileMatches:
    """Parse `{"matches", "line_numbers", "file"?, "truncated"?}`, with one line number for each match."""
    matches = _strs(data, "matches")
    numbers = _list(data, "line_numbers")
    if len(numbers) != len(matches):
        raise _malformed("line_numbers")
    return FileMatches(
        file=_str(data, "file", file),
        matches=matches,
        line_numbers=tuple(_int(number, "line_numbers") for number in numbers),
        truncated=data.get("truncated") is True,
    )


def parse_found_files(data: JsonObject, path: str) -> FoundFiles:
    """Parse `{"files", "path"?, "truncated"?}`; `path` is the requested folder."""
    files = _strs(data, "files")
    return FoundFiles(path=_str(data, "path", path), files=files, truncated=data.get("truncated") is True)


def parse_count(data: JsonObject, name: str) -> int:
    """Parse the integer field `name`."""
    return _int(data.get(name), name)


def parse_parts(data: JsonObject) -> dict[str, PartStatus]:
    """Parse `{<part>: {"ready", "reason"?}, …}` of the status. Fields that are not objects are not parts."""
    parts: dict[str, PartStatus] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            fields = cast("dict[str, object]", value)
            ready = fields.get("ready")
            if not isinstance(ready, bool):
                raise _malformed(name)
            parts[name] = PartStatus(ready=ready, reason=_str(fields, "reason", ""))
    return parts


def parse_idle_seconds(data: JsonObject) -> float | None:
    """Parse `{"idle_seconds"?}` of the status: 0 while the sandbox is in use, None if it is not reported."""
    value = data.get("idle_seconds")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return max(float(value), 0.0)
    raise _malformed("idle_seconds")


def _shell_status(data: JsonObject) -> ShellStatus:
    value = data.get("status")
    if value == "completed":
        return "completed"
    if value == "running":
        return "running"
    raise _malformed("status")


def _console_record(item: object) -> ConsoleRecord:
    if not isinstance(item, dict):
        raise _malformed("console")
    fields = cast("dict[str, object]", item)
    return ConsoleRecord(
        ps1=_str(fields, "ps1", ""), command=_str(fields, "command", ""), output=_str(fields, "output", "")
    )


def _str(data: JsonObject, name: str, default: str | None = None) -> str:
    value = data.get(name)
    if isinstance(value, str):
        return value
    if value is None and default is not None:
        return default
    raise _malformed(name)


def _optional_int(data: JsonObject, name: str) -> int | None:
    value = data.get(name)
    return None if value is None else _int(value, name)


def _int(value: object, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _malformed(name)


def _list(data: JsonObject, name: str, *, optional: bool = False) -> list[object]:
    value = data.get(name)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise _malformed(name)
    return cast("list[object]", value)


def _strs(data: JsonObject, name: str) -> tuple[str, ...]:
    values = _list(data, name)
    for value in values:
        if not isinstance(value, str):
            raise _malformed(name)
    return tuple(cast("list[str]", values))


def _malformed(name: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"The sandbox's answer is malformed: `{name}` is missing or wrong.")
