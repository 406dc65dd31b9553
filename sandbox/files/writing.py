"""Writing of files.

Every public function raises `Failure` for a path that is not a regular file, and OSError if the operating system
refuses.
"""

import errno
import os
import re
import secrets
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO

from sandbox.files.encoding import SAMPLE_BYTES, Encoding, encode, file_encoding, new_encoding
from sandbox.files.guess import KEEP
from sandbox.files.paths import ResolvedPath
from sandbox.files.reading import LINE_END_NAMES, has_cr_ends, open_regular
from sandbox.web import Failure

_LINE_END = re.compile(r"\r\n|\n")
_ANY_LINE_END = re.compile(r"\r\n|\n|\r")
_LONE_NEWLINE = re.compile(r"(?<!\r)\n")
_COPY = 1024 * 1024
"""Number of bytes to copy at once."""


@dataclass(frozen=True)
class Written:
    """The effect of a write. `count`: bytes written, or texts replaced."""

    count: int
    encoding: Encoding
    note: str = ""


def write(place: ResolvedPath, content: str, asked: str | None = None) -> Written:
    """Create or replace a file, in UTF-8 or the encoding `asked` for. The note says what else changed by that."""
    encoding = new_encoding(asked)
    data = encoding.bom + encode(content, encoding, place.given)
    before = None if asked else _existing_text(place)
    store(place, [data], len(data))
    changes: list[str] = []
    if before is not None:
        old, old_ends = before
        if (old.name, old.bom) != (encoding.name, encoding.bom):
            changes.append(f"it was {old.described} and is {encoding.name} now: pass `encoding` to keep it")
        if old_ends != "\n" and _LONE_NEWLINE.search(content):
            changes.append(f"its line ends were {LINE_END_NAMES[old_ends]} and are LF now")
    return Written(len(data), encoding, "; ".join(changes))


def append(place: ResolvedPath, content: str, asked: str | None = None) -> Written:
    """Append `content` in the file's own encoding, or the one `asked` for, and with its line ends."""
    _refuse_special(place)
    encoding, line_end = _for_append(place, content, asked)
    if line_end != "\n":
        content = _LONE_NEWLINE.sub(line_end, content)
    data = encode(content, encoding, place.given)
    os.makedirs(os.path.dirname(place.real), exist_ok=True)
    fd = os.open(place.real, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    with os.fdopen(fd, "ab", buffering=0) as target:
        before = os.fstat(fd).st_size
        data = data if before else encoding.bom + data
        try:
            written = 0
            while written < len(data):
                written += target.write(data[written:])
        except OSError:
            os.ftruncate(fd, before)
            raise
    return Written(len(data), encoding)


def _existing_text(place: ResolvedPath) -> tuple[Encoding, str] | None:
    """Return encoding and line end of a file with text that is not ASCII, or has other line ends than newlines."""
    try:
        fd, _ = open_regular(place)
    except (OSError, Failure):
        return None
    try:
        encoding = file_encoding(fd, place.given)
        line_end = _line_end(os.pread(fd, SAMPLE_BYTES, 0), encoding)
    except Failure:
        return None  # a binary file
    finally:
        os.close(fd)
    return encoding, line_end


def _for_append(place: ResolvedPath, content: str, asked: str | None) -> tuple[Encoding, str]:
    """Return the encoding and the line end for what is appended."""
    try:
        fd, found = open_regular(place)
    except (FileNotFoundError, PermissionError):
        return new_encoding(asked), "\n"
    try:
        if not found.st_size:
            return new_encoding(asked), "\n"
        encoding = file_encoding(fd, place.given, asked)
        if asked and not content.isascii():
            _refuse_mixture(fd, place, encoding)
        end = found.st_size - found.st_size % 4  # whole characters of UTF-16 and UTF-32
        tail = os.pread(fd, SAMPLE_BYTES, max(end - SAMPLE_BYTES, 0))
        return encoding, _line_end(tail, encoding, last=True)
    finally:
        os.close(fd)


def _refuse_mixture(fd: int, place: ResolvedPath, encoding: Encoding) -> None:
    try:
        certain = file_encoding(fd, place.given)
    except Failure:
        return  # binary, and the caller knows better
    if not certain.is_guess and not certain.is_ascii and certain.name != encoding.name:
        raise Failure(400, f"nothing was written: the file is {certain.described}, leave out `encoding`: {place.given}")


def _line_end(data: bytes, encoding: Encoding, *, last: bool = False) -> str:
    """Return the first or last line end of a text; a newline if it has none."""
    text = data.decode(encoding.name, KEEP)
    pattern = _ANY_LINE_END if has_cr_ends(text) else _LINE_END
    found = pattern.findall(text)
    return found[-1 if last else 0] if found else "\n"


def save_stream(place: ResolvedPath, source: BinaryIO) -> int:
    """Create or replace a file with all of `source` in bounded memory and return its size."""
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    store(place, iter(lambda: source.read(_COPY), b""), size)
    return size


def store(place: ResolvedPath, chunks: Iterable[bytes | bytearray], size: int) -> None:
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


def _write_in_place(path: str, chunks: Iterable[bytes | bytearray], size: int) -> None:
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
