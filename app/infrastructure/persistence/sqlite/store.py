"""The SQLite store: its file, its lock and its connections."""

import asyncio
import fcntl
import logging
import os
import secrets
import sqlite3
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.group_commit import OnCommitted
from app.infrastructure.persistence.session_update import EncodeEvent
from app.infrastructure.persistence.sqlite.database import MIGRATIONS, Database, migrate
from app.infrastructure.persistence.sqlite.repositories import (
    SqliteAuditLog,
    SqliteEventLog,
    SqliteScreenshots,
    SqliteSessions,
    SqliteTickets,
)
from app.infrastructure.persistence.sqlite.writer import Writer

log = logging.getLogger(__name__)

DATABASE_FILE = "anker.db"
"""Name of the database in `DATA_DIR`."""

_LOCK = "anker.lock"
_CACHE_KIB = 16 * 2**10
"""Size of the reader's page cache in KiB: a history of some ten thousand events is in memory the second time."""

_WAL_BYTES = 64 * 2**20
"""Size in bytes that the write-ahead log is cut back to after it grew beyond it."""


_OWN_FOLDERS = frozenset({"sandboxes", "lost+found"})
"""Names of folders that a data directory may have. With another one, the directory also serves other purposes."""

_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SqliteStore:
    """`DATA_DIR/anker.db`, for one process at a time: `async with SqliteStore(...) as store`."""

    schema = f"SQLite, version {len(MIGRATIONS)}"
    """The schema that this program uses."""

    def __init__(self, data_dir: Path, *, encode: EncodeEvent, on_committed: OnCommitted) -> None:
        """Prepare the store; `open` opens it.

        Args:
            data_dir: Directory of the file, created if it is missing.
            encode: Encoder of events.
            on_committed: Callback for every stored event.
        """
        self._dir = data_dir
        self._lock: int | None = None
        self._database = Database(data_dir / DATABASE_FILE, writable=True)
        self._reader = Database(data_dir / DATABASE_FILE, writable=False)
        self._writer = Writer(self._database, encode, on_committed)
        self.event_log = SqliteEventLog(self._reader, self._writer)
        self.sessions = SqliteSessions(self._reader, self._writer)
        self.screenshots = SqliteScreenshots(self._reader, self._writer)
        self.tickets = SqliteTickets(self._reader, self._writer)
        self.audit = SqliteAuditLog(self._reader, self._writer)
        self.installation = ""
        """Random id of the store, which marks what belongs to it elsewhere. Set by `open`."""
        self.signing_key = ""
        """Random secret of the store, which signs what its processes hand out. Set by `open`."""

    async def open(self) -> None:
        """Lock the directory, open the file and migrate its schema. A store is opened once.

        Raises:
            StoreUnavailable: Another process uses the directory, a newer version of this program wrote the file, or the
                file cannot be used.
        """
        self._lock = await asyncio.to_thread(lock_directory, self._dir)
        try:
            await asyncio.to_thread(_protect, self._dir / DATABASE_FILE)
            await self._database.open()
            self.installation, self.signing_key = await self._database.run(_prepare)
            await self._reader.open()
            await self._reader.run(lambda connection: connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}"))
        except BaseException:
            await self._release()
            raise
        await self.sessions.delete_rows()

    async def close(self) -> None:
        """Write what is waiting, close the file and release the lock. End runs and streams before."""
        await self._writer.wait_until_idle()
        await self._release()

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator["SqliteStore", None]:
        """Open the file for reading only, also while another process uses it.

        Raises:
            StoreUnavailable: The file cannot be opened.
        """
        try:
            await self._reader.open()
            yield self
        finally:
            await self._reader.close()

    async def __aenter__(self) -> "SqliteStore":
        await self.open()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _release(self) -> None:
        try:
            await self._reader.close()
            await self._database.close()  # the last connection also moves the write-ahead log into the file
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def lock_directory(directory: Path) -> int:
    """Lock `directory` for this process. The lock ends with the returned descriptor, however the process ends.

    Raises:
        StoreUnavailable: Another process has locked it, or it cannot be used.
    """
    try:
        _make_private_directory(directory)
        descriptor = _open_private_file(directory / _LOCK)
    except OSError as error:
        raise StoreUnavailable(f"DATA_DIR: {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        is_used = isinstance(error, BlockingIOError)
        reason = f"is in use by another process ({holder})" if is_used else f"cannot be locked: {error.strerror}"
        raise StoreUnavailable(f"DATA_DIR: {directory} {reason}") from error
    return descriptor


def _protect(file: Path) -> None:
    """Make the database private. SQLite gives the files that it creates beside it the same mode."""
    try:
        _make_private_file(file, create=True)
        for suffix in ("-wal", "-shm", "-journal"):
            _make_private_file(file.with_name(file.name + suffix))
    except OSError as error:
        raise StoreUnavailable(f"DATA_DIR: {file} cannot be used: {error.strerror}") from error


def _make_private_directory(directory: Path) -> None:
    """Create `directory` with mode 0700, or give it that mode if it is this user's and is used for nothing else.

    Otherwise log a warning if other users can enter it: only its single files are private then.

    Raises:
        OSError: The directory cannot be created or read.
    """
    directory.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    found = directory.stat()
    if not found.st_mode & _FOR_OTHERS:
        return
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX and _has_only_own_folders(directory):
        directory.chmod(stat.S_IRWXU)
    elif found.st_mode & stat.S_IRWXO:
        log.warning(
            "other users can enter DATA_DIR; give the service a directory of its own with mode 0700",
            extra={"directory": str(directory)},
        )


def _open_private_file(path: Path) -> int:
    """Open a file for reading and writing, with mode 0600, and return its descriptor. Create it if it is missing.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
    found = os.fstat(descriptor)
    if found.st_mode & _FOR_OTHERS:
        if found.st_uid == os.geteuid():
            os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
        else:
            log.warning(
                "a file in DATA_DIR belongs to another user, who may let others read it", extra={"file": str(path)}
            )
    return descriptor


def _make_private_file(path: Path, *, create: bool = False) -> None:
    """Give a file mode 0600. Create it if `create` is true; otherwise a missing file is left alone.

    Raises:
        OSError: The file cannot be opened.
    """
    if create or path.exists():
        os.close(_open_private_file(path))


def _has_only_own_folders(directory: Path) -> bool:
    return all(entry.name in _OWN_FOLDERS or not entry.is_dir() for entry in directory.iterdir())


def _prepare(connection: sqlite3.Connection) -> tuple[str, str]:
    """Configure the connection and migrate the schema. Return the id and the signing key of the store."""
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    # FULL: a transaction is on the disk before anybody learns of it. In WAL mode that is one sync for each.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}").fetchone()
    migrate(connection)
    return _metadata(connection, "installation", secrets.token_hex(8)), _metadata(
        connection, "signing_key", secrets.token_hex(32)
    )


def _metadata(connection: sqlite3.Connection, name: str, default: str) -> str:
    """Return a stored value; store `default` if there is none."""
    connection.execute("INSERT OR IGNORE INTO metadata VALUES (?, ?)", (name, default))
    return str(connection.execute("SELECT value FROM metadata WHERE name = ?", (name,)).fetchone()[0])
