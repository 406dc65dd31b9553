"""Atomic writing of files: no reader ever sees half a file.

Every public function raises `Failure` for a path that is not a regular file, and OSError if the operating system
refuses.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import BinaryIO

from sandbox.files.encoding import Encoding, format_size
from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import file_encoding, open_regular
from sandbox.web import Failure

MAX_REPLACE_BYTES = 32 * 1024 * 1024
"""Maximum size of a file to replace text in, in bytes."""
_COPY = 1024 * 1024
"""Number of bytes to copy at once."""


def write(place: ResolvedPath, content: str) -> int:
    """Create or replace a file with `content` in UTF-8 and return the bytes written."""
    data = content.encode("utf-8", "replace")
    store(place, [data])
    return len(data)


def append(place: ResolvedPath, content: str) -> int:
    """Append `content` in the file's own encoding and return the bytes written."""
    _refuse_special(place)
    os.makedirs(os.path.dirname(place.real), exist_ok=True)
    data = content.encode(_encoding_for_append(place), "replace")
    fd = os.open(place.real, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    with os.fdopen(fd, "wb") as target:
        target.write(data)
    return len(data)


def replace(place: ResolvedPath, old: str, new: str) -> int:
    """Replace every `old` by `new`, keep encoding and line ends, and return the number of replacements."""
    if not old:
        raise Failure(400, "old_str is empty")
    fd, found = open_regular(place)
    try:
        if found.st_size > MAX_REPLACE_BYTES:
            raise Failure(413, f"{format_size(found.st_size)} is too large to replace in: use sed in a shell")
        encoding = file_encoding(fd, found.st_size, place.given)
        data = os.pread(fd, MAX_REPLACE_BYTES + 1, len(encoding.bom))
    finally:
        os.close(fd)
    text, encoding = _decode_strict(data, encoding, place.given)
    if "\r\n" in text:
        # Callers see and write plain newlines.
        new = _crlf(new)
        old = old if "\n" not in old or old in text else _crlf(old)
    count = text.count(old)
    if count == 0:
        raise Failure(404, f"old_str does not occur in {place.given}")
    try:
        changed = text.replace(old, new).encode(encoding.name)
    except UnicodeEncodeError as error:
        raise Failure(400, f"new_str has characters that {encoding.name}, this file's encoding, cannot hold") from error
    store(place, [encoding.bom, changed])
    return count


def save_stream(place: ResolvedPath, source: BinaryIO) -> int:
    """Create or replace a file with all of `source` in bounded memory and return its size."""
    return store(place, iter(lambda: source.read(_COPY), b""))


def store(place: ResolvedPath, chunks: Iterable[bytes]) -> int:
    """Replace a whole file atomically and keep its mode. Return its size."""
    existing = _refuse_special(place)
    folder, name = os.path.split(place.real)
    os.makedirs(folder, exist_ok=True)
    if existing is not None and not os.access(place.real, os.W_OK):
        raise PermissionError(errno.EACCES, "permission denied")
    with _temporary(folder, name) as (temporary, fd):
        size = 0
        with os.fdopen(fd, "wb") as target:
            if existing is not None:
                _copy_owner_and_mode(fd, existing)
            for chunk in chunks:
                target.write(chunk)
                size += len(chunk)
        os.replace(temporary, place.real)
    return size


@contextmanager
def _temporary(folder: str, name: str) -> Generator[tuple[str, int]]:
    path = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.tmp")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        yield path, fd
    except BaseException:
        _ignore_os_errors(lambda: os.unlink(path))
        raise


def _copy_owner_and_mode(fd: int, existing: os.stat_result) -> None:
    if os.geteuid() == 0:
        _ignore_os_errors(lambda: os.fchown(fd, existing.st_uid, existing.st_gid))
    os.fchmod(fd, stat.S_IMODE(existing.st_mode))


def _ignore_os_errors(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return


def _refuse_special(place: ResolvedPath) -> os.stat_result | None:
    try:
        existing = os.stat(place.real)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(existing.st_mode):
        raise Failure(400, f"is a folder: {place.given}")
    if not stat.S_ISREG(existing.st_mode):
        raise Failure(400, f"not a regular file but a pipe, socket or device: {place.given}")
    return existing


def _encoding_for_append(place: ResolvedPath) -> str:
    try:
        fd, found = open_regular(place)
    except (FileNotFoundError, PermissionError):
        return "utf-8"
    try:
        return file_encoding(fd, found.st_size, place.given).name if found.st_size else "utf-8"
    except Failure:
        return "utf-8"  # a binary file: the caller knows what it appends
    finally:
        os.close(fd)


def _decode_strict(data: bytes, encoding: Encoding, path: str) -> tuple[str, Encoding]:
    """Decode without loss, so that bytes outside the replaced text stay the same."""
    try:
        return data.decode(encoding.name), encoding
    except UnicodeDecodeError as error:
        if encoding.name.startswith("utf-8"):
            # Mostly UTF-8 with a few invalid bytes, which survive as single-byte characters.
            return data.decode("latin-1"), Encoding("latin-1", encoding.bom)
        raise Failure(400, f"not valid {encoding.name} text: {path}") from error


def _crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")
