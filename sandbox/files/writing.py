"""Writing so that nobody ever sees half a file."""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import BinaryIO

from sandbox.failure import Failure
from sandbox.files.encoding import Encoding, readable
from sandbox.files.paths import Place
from sandbox.files.reading import file_encoding, open_regular

MOST_REPLACE_BYTES = 32 * 1024 * 1024
_COPY = 1024 * 1024


def write(place: Place, content: str) -> int:
    """Makes or replaces a file with `content` as UTF-8; gives the bytes written. Raises Failure, OSError."""
    data = content.encode("utf-8", "replace")
    store(place, [data])
    return len(data)


def append(place: Place, content: str) -> int:
    """Adds `content` at the end, in the file's own encoding; gives the bytes written. Raises Failure, OSError."""
    _refuse_special(place)
    os.makedirs(os.path.dirname(place.real), exist_ok=True)
    data = content.encode(_encoding_for_append(place), "replace")
    fd = os.open(place.real, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    with os.fdopen(fd, "wb") as target:
        target.write(data)
    return len(data)


def replace(place: Place, old: str, new: str) -> int:
    """Replaces every `old` by `new`, keeping encoding and line ends; says how many. Raises Failure, OSError."""
    if not old:
        raise Failure(400, "old_str is empty")
    fd, found = open_regular(place)
    try:
        if found.st_size > MOST_REPLACE_BYTES:
            raise Failure(413, f"{readable(found.st_size)} is too large to replace in: use sed in a shell")
        encoding = file_encoding(fd, found.st_size, place.said)
        data = os.pread(fd, MOST_REPLACE_BYTES + 1, len(encoding.bom))
    finally:
        os.close(fd)
    text, encoding = _strictly(data, encoding, place.said)
    if "\r\n" in text:
        # A caller was shown, and writes, plain newlines.
        new = _crlf(new)
        old = old if "\n" not in old or old in text else _crlf(old)
    count = text.count(old)
    if count == 0:
        raise Failure(404, f"old_str does not occur in {place.said}")
    try:
        changed = text.replace(old, new).encode(encoding.name)
    except UnicodeEncodeError as error:
        raise Failure(400, f"new_str has characters that {encoding.name}, this file's encoding, cannot hold") from error
    store(place, [encoding.bom, changed])
    return count


def save_stream(place: Place, source: BinaryIO) -> int:
    """Makes or replaces a file with all of `source`, in bounded memory; gives its size. Raises Failure, OSError."""
    return store(place, iter(lambda: source.read(_COPY), b""))


def store(place: Place, chunks: Iterable[bytes]) -> int:
    """Puts a whole file in place at once, keeping the mode of one that is there. Raises Failure, OSError."""
    existing = _refuse_special(place)
    folder, name = os.path.split(place.real)
    os.makedirs(folder, exist_ok=True)
    if existing is not None and not os.access(place.real, os.W_OK):
        raise PermissionError(errno.EACCES, "permission denied")
    with _temporary(folder, name) as (temporary, fd):
        size = 0
        with os.fdopen(fd, "wb") as target:
            if existing is not None:
                _like(fd, existing)
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
        _quietly(lambda: os.unlink(path))
        raise


def _like(fd: int, existing: os.stat_result) -> None:
    if os.geteuid() == 0:
        _quietly(lambda: os.fchown(fd, existing.st_uid, existing.st_gid))
    os.fchmod(fd, stat.S_IMODE(existing.st_mode))


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except OSError:
        return


def _refuse_special(place: Place) -> os.stat_result | None:
    try:
        existing = os.stat(place.real)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(existing.st_mode):
        raise Failure(400, f"is a folder: {place.said}")
    if not stat.S_ISREG(existing.st_mode):
        raise Failure(400, f"not a regular file but a pipe, socket or device: {place.said}")
    return existing


def _encoding_for_append(place: Place) -> str:
    try:
        fd, found = open_regular(place)
    except (FileNotFoundError, PermissionError):
        return "utf-8"
    try:
        return file_encoding(fd, found.st_size, place.said).name if found.st_size else "utf-8"
    except Failure:
        return "utf-8"  # a binary file: the caller knows what it adds
    finally:
        os.close(fd)


def _strictly(data: bytes, encoding: Encoding, path: str) -> tuple[str, Encoding]:
    """The text without loss: what is replaced elsewhere must not change these bytes."""
    try:
        return data.decode(encoding.name), encoding
    except UnicodeDecodeError as error:
        if encoding.name.startswith("utf-8"):
            # Mostly UTF-8 with a few wrong bytes: these pass through unharmed as one-byte characters.
            return data.decode("latin-1"), Encoding("latin-1", encoding.bom)
        raise Failure(400, f"not valid {encoding.name} text: {path}") from error


def _crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")
