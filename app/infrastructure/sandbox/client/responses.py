"""Parsers of the sandbox API's response data. A missing field, or one of a wrong type, raises `SandboxUnavailable`.

The fields of a response have the names of the domain's value objects. Unknown fields are ignored.
"""

import binascii
from base64 import b64decode
from dataclasses import replace
from typing import TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from app.domain.errors import SandboxUnavailable
from app.domain.models.sandbox import (
    FileChange,
    FileImage,
    FileMatches,
    FileText,
    FolderListing,
    FoundFiles,
    PartStatus,
    ShellState,
)
from app.infrastructure.sandbox.client.api_client import JsonObject

T = TypeVar("T")

MAX_IMAGE_BYTES = 400_000
"""Maximum size of a picture, in bytes. The sandbox itself keeps to half of it."""

_SHELL_STATE = TypeAdapter(ShellState)
_FILE_TEXT = TypeAdapter(FileText)
_FILE_CHANGE = TypeAdapter(FileChange)
_FILE_MATCHES = TypeAdapter(FileMatches)
_FOUND_FILES = TypeAdapter(FoundFiles)
_FOLDER = TypeAdapter(FolderListing)
_PARTS = TypeAdapter(dict[str, PartStatus])
_COUNT = TypeAdapter(int)
_TEXT = TypeAdapter(str)
_SECONDS = TypeAdapter(float)


def parse_shell_state(data: JsonObject, shell_id: str) -> ShellState:
    """Parse the state of a shell. `shell_id`: the caller's id, which the sandbox may know by another one."""
    # The caller's id may hold half a surrogate pair, which JSON cannot.
    return replace(_parse(_SHELL_STATE, {**_present(data), "shell_id": ""}), shell_id=shell_id)


def parse_file_text(data: JsonObject, file: str) -> FileText:
    """Parse text that was read from a file. `file`: the requested path, used if the response names none."""
    return _parse(_FILE_TEXT, {"file": file, **_present(data)})


def parse_file_change(data: JsonObject, file: str, count: str) -> FileChange:
    """Parse a change, whose size is in the field `count`. `file`: as in `parse_file_text`."""
    return _parse(_FILE_CHANGE, {"file": file, **_present(data), "count": parse_count(data, count)})


def parse_file_matches(data: JsonObject, file: str) -> FileMatches:
    """Parse matching lines, with one line number for each match. `file`: as in `parse_file_text`."""
    found = _parse(_FILE_MATCHES, {"file": file, **_present(data)})
    if len(found.line_numbers) != len(found.matches):
        raise _malformed("line_numbers")
    return found


def parse_found_files(data: JsonObject, path: str) -> FoundFiles:
    """Parse paths that match a glob. `path`: the requested folder, used if the response names none."""
    return _parse(_FOUND_FILES, {"path": path, **_present(data)})


def parse_folder(data: JsonObject) -> FolderListing:
    """Parse the entries of a folder."""
    return _parse(_FOLDER, data)


def parse_file_image(data: JsonObject, file: str) -> FileImage:
    """Parse a picture. `file`: as in `parse_file_text`."""
    try:
        jpeg = b64decode(_parse(_TEXT, data.get("base64"), "base64"), validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("base64") from None
    if len(jpeg) > MAX_IMAGE_BYTES or data.get("media_type") != "image/jpeg":
        raise _malformed("media_type" if len(jpeg) <= MAX_IMAGE_BYTES else "base64")
    return FileImage(
        file=_parse(_TEXT, data.get("file", file), "file"),
        jpeg=jpeg,
        original_width=parse_count(data, "original_width"),
        original_height=parse_count(data, "original_height"),
    )


def parse_count(data: JsonObject, name: str) -> int:
    """Parse the integer field `name`."""
    return _parse(_COUNT, data.get(name), name)


def parse_parts(data: JsonObject) -> dict[str, PartStatus]:
    """Parse `{<part>: {"ready", "reason"?}, …}` of the status. Fields that are not objects are not parts."""
    parts: dict[str, object] = {name: value for name, value in data.items() if isinstance(value, dict)}
    return _parse(_PARTS, parts)


def parse_idle_seconds(data: JsonObject) -> float | None:
    """Parse `{"idle_seconds"?}` of the status: 0 while the sandbox is in use, None if it is not reported."""
    value = data.get("idle_seconds")
    return None if value is None else max(_parse(_SECONDS, value, "idle_seconds"), 0.0)


def _present(data: JsonObject) -> JsonObject:
    return {name: value for name, value in data.items() if value is not None}


def _parse(adapter: TypeAdapter[T], value: object, name: str = "") -> T:
    try:
        # As JSON, because strict validation of Python values takes no list for a tuple.
        encoded = orjson.dumps(value)
    except TypeError:  # it is nested too deeply
        raise _malformed(name or "data") from None
    try:
        return adapter.validate_json(encoded, strict=True)
    except ValidationError as error:
        location = error.errors(include_url=False, include_input=False)[0]["loc"]
        raise _malformed(str(location[0]) if location else name) from None


def _malformed(name: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"The sandbox's answer is malformed: `{name}` is missing or wrong.")
