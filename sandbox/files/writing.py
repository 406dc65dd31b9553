"""Writing of files.

Every public function raises `Failure` for a path that is not a regular file, and OSError if the operating system
refuses.
"""

import errno
import os
import secrets
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
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
    store(place, [data], len(data))
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
    store(place, [encoding.bom, changed], len(encoding.bom) + len(changed))
    return count


def save_stream(place: ResolvedPath, source: BinaryIO) -> int:
    """Create or replace a file with all of `source` in bounded memory and return its size."""
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    store(place, iter(lambda: source.read(_COPY), b""), size)
    return size


def store(place: ResolvedPath, chunks: Iterable[bytes], size: int) -> None:
    """Create or replace a whole file of `size` bytes.

    A new file takes the place of the old one, so that no reader sees half a file and a failure leaves the old content.
    A file that would lose something by that (a hard link, its owner, its attributes) is written in place instead.
    """
    existing = _refuse_special(place)
    folder, name = os.path.split(place.real)
    if existing is None:
        os.makedirs(folder, exist_ok=True)
    else:
        _require_writable(place.real)
        if existing.st_nlink > 1:
            return _write_in_place(place.real, chunks, size)
    try:
        with _temporary(folder, name, exists=existing is not None) as (temporary, fd):
            with os.fdopen(fd, "wb") as target:
                if existing is not None:
                    _copy_attributes(place.real, existing, fd)
                target.writelines(chunks)
            _rename(temporary, place.real, size)
    except _CannotReplace:
        _write_in_place(place.real, chunks, size)


def _rename(temporary: str, path: str, size: int) -> None:
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        with open(temporary, "rb") as source:  # the file is a mount point
            _write_in_place(path, iter(lambda: source.read(_COPY), b""), size)
        os.unlink(temporary)


class _CannotReplace(Exception):
    """A new file cannot take the place of the old one. Nothing was written."""


@contextmanager
def _temporary(folder: str, name: str, *, exists: bool) -> Generator[tuple[str, int]]:
    path = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except PermissionError as error:
        if exists:  # the file may be written, the folder may not
            raise _CannotReplace from error
        raise
    try:
        yield path, fd
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _copy_attributes(source: str, existing: os.stat_result, fd: int) -> None:
    """Give a new file the owner, mode, access list and extended attributes of the old one."""
    created = os.fstat(fd)
    try:
        if (created.st_uid, created.st_gid) != (existing.st_uid, existing.st_gid):
            os.fchown(fd, existing.st_uid, existing.st_gid)
        os.fchmod(fd, stat.S_IMODE(existing.st_mode))
        for name in _attributes(source):
            os.setxattr(fd, name, os.getxattr(source, name))
    except OSError as error:
        raise _CannotReplace from error


def _attributes(path: str) -> list[str]:
    try:
        return [name for name in os.listxattr(path) if name != "security.selinux"]
    except OSError:
        return []  # the file system has none


def _require_writable(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError as error:
        if error.errno != errno.ETXTBSY:  # a program that runs can be replaced
            raise


def _write_in_place(path: str, chunks: Iterable[bytes], size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(fd, "wb") as target:
        before = os.fstat(fd).st_size
        try:
            if size > before:  # reserves the space, so that a full disk changes nothing
                os.posix_fallocate(fd, 0, size)
        except OSError:
            os.ftruncate(fd, before)
            raise
        target.writelines(chunks)
        target.flush()
        os.ftruncate(fd, size)


def _refuse_special(place: ResolvedPath) -> os.stat_result | None:
    if place.given.endswith("/"):
        raise Failure(400, f"a path that ends with / is a folder: {place.given}")
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
