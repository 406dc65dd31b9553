"""The `data` of the sandbox's answers → the domain's values. What is missing or of another type is refused."""

from collections.abc import Mapping
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

JsonObject = Mapping[str, object]


def parse_shell_state(data: JsonObject, shell: str) -> ShellState:
    """`{"status", "returncode"?, "output"?, "console"?, "truncated"?, "output_file"?}` of the shell named `shell`."""
    return ShellState(
        shell_id=shell,
        status=_status(data),
        returncode=_number(data, "returncode"),
        output=_text(data, "output", ""),
        console=tuple(_record(item) for item in _list(data, "console", optional=True)),
        truncated=data.get("truncated") is True,
        output_file=_text(data, "output_file", ""),
    )


def parse_file_text(data: JsonObject, file: str) -> FileText:
    """`{"content", "file"?, "line_count"?, "truncated"?}`; `file` is the path that was asked for."""
    return FileText(
        file=_text(data, "file", file),
        content=_text(data, "content"),
        line_count=_number(data, "line_count"),
        truncated=data.get("truncated") is True,
    )


def parse_file_matches(data: JsonObject, file: str) -> FileMatches:
    """`{"matches", "line_numbers", "file"?, "truncated"?}`, as many numbers as lines."""
    matches = _texts(data, "matches")
    numbers = _list(data, "line_numbers")
    if len(numbers) != len(matches):
        raise _garbled("line_numbers")
    return FileMatches(
        file=_text(data, "file", file),
        matches=matches,
        line_numbers=tuple(_whole(number, "line_numbers") for number in numbers),
        truncated=data.get("truncated") is True,
    )


def parse_found_files(data: JsonObject, path: str) -> FoundFiles:
    """`{"files", "path"?, "truncated"?}`."""
    files = _texts(data, "files")
    return FoundFiles(path=_text(data, "path", path), files=files, truncated=data.get("truncated") is True)


def parse_count(data: JsonObject, name: str) -> int:
    """The whole number `name`."""
    return _whole(data.get(name), name)


def parse_parts(data: JsonObject) -> dict[str, PartStatus]:
    """`{<part>: {"ready", "reason"?}, …}` of `status`; what is no object is no part."""
    found: dict[str, PartStatus] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            fields = cast("dict[str, object]", value)
            ready = fields.get("ready")
            if not isinstance(ready, bool):
                raise _garbled(name)
            found[name] = PartStatus(ready=ready, reason=_text(fields, "reason", ""))
    return found


def parse_idle_seconds(data: JsonObject) -> float | None:
    """`{"idle_seconds"?}` of `status`: 0 while the sandbox is in use; None when it does not tell."""
    value = data.get("idle_seconds")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return max(float(value), 0.0)
    raise _garbled("idle_seconds")


def _status(data: JsonObject) -> ShellStatus:
    value = data.get("status")
    if value == "completed":
        return "completed"
    if value == "running":
        return "running"
    raise _garbled("status")


def _record(item: object) -> ConsoleRecord:
    if not isinstance(item, dict):
        raise _garbled("console")
    fields = cast("dict[str, object]", item)
    return ConsoleRecord(
        ps1=_text(fields, "ps1", ""), command=_text(fields, "command", ""), output=_text(fields, "output", "")
    )


def _text(data: JsonObject, name: str, default: str | None = None) -> str:
    value = data.get(name)
    if isinstance(value, str):
        return value
    if value is None and default is not None:
        return default
    raise _garbled(name)


def _number(data: JsonObject, name: str) -> int | None:
    value = data.get(name)
    return None if value is None else _whole(value, name)


def _whole(value: object, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _garbled(name)


def _list(data: JsonObject, name: str, *, optional: bool = False) -> list[object]:
    value = data.get(name)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise _garbled(name)
    return cast("list[object]", value)


def _texts(data: JsonObject, name: str) -> tuple[str, ...]:
    values = _list(data, name)
    for value in values:
        if not isinstance(value, str):
            raise _garbled(name)
    return tuple(cast("list[str]", values))


def _garbled(name: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"The sandbox gave an answer that makes no sense: `{name}` is missing or wrong.")
