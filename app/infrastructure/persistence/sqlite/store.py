"""The SQLite store as a whole: its file, its lock, its connections."""

import asyncio
import fcntl
import os
import secrets
import sqlite3
from pathlib import Path
from types import TracebackType

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.event_log import SqliteEventLog
from app.infrastructure.persistence.sqlite.ledger import Encode, Ledger
from app.infrastructure.persistence.sqlite.migrations import migrate
from app.infrastructure.persistence.sqlite.screenshots import SqliteScreenshots
from app.infrastructure.persistence.sqlite.sessions import SqliteSessions
from app.infrastructure.persistence.sqlite.tickets import SqliteTickets
from app.infrastructure.persistence.sqlite.writer import OnCommitted, Writer

_FILE = "anker.db"
_LOCK = "anker.lock"
_CACHE_KIB = 16 * 2**10
"""What the reader may keep of the file: a history of some ten thousand events is read from memory the second time."""

_WAL_BYTES = 64 * 2**20
"""What the log file is cut back to after it had to grow."""


class SqliteStore:
    """`DATA_DIR/anker.db`, for one process at a time: `async with SqliteStore(…) as store`.

    `encode` makes the JSON of an event; `on_committed` hears of every stored event, on the event loop, in order.
    """

    def __init__(self, data_dir: Path, *, encode: Encode, on_committed: OnCommitted) -> None:
        self._dir = data_dir
        self._lock: int | None = None
        self._database = Database(data_dir / _FILE, writable=True)
        self._reader = Database(data_dir / _FILE, writable=False)
        self._writer = Writer(self._database, Ledger(encode), on_committed)
        self.event_log = SqliteEventLog(self._reader, self._writer)
        self.sessions = SqliteSessions(self._reader, self._writer)
        self.screenshots = SqliteScreenshots(self._reader, self._writer)
        self.tickets = SqliteTickets(self._writer)
        self.installation = ""
        """A random word that is made with the store: what belongs to it elsewhere carries the word. Set by `open`."""

    async def open(self) -> None:
        """Take the directory's lock, open the file, bring its schema up to date. Once in a store's life.

        Raises:
            StoreUnavailable: another process has the directory, a newer program wrote the file, or it does not work.
        """
        self._lock = await asyncio.to_thread(_lock, self._dir)
        try:
            await self._database.open()
            self.installation = await self._database.run(_prepare)
            await self._reader.open()
            await self._reader.run(lambda connection: connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}"))
        except BaseException:
            await self._release()
            raise
        self._writer.start()
        await self.sessions.clear_away()

    async def close(self) -> None:
        """Write what is waiting, close the file, let go of the lock. Runs and streams should have ended before."""
        await self._writer.close()
        await self._release()

    async def __aenter__(self) -> "SqliteStore":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _release(self) -> None:
        try:
            await self._reader.close()
            await self._database.close()  # the last one out also brings the log's content into the file
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


def _lock(directory: Path) -> int:
    """Lock `directory` for this process; the lock lives as long as the descriptor, whatever ends the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"DATA_DIR: {directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        raise StoreUnavailable(f"DATA_DIR: {directory} is in use by another process ({holder})") from error
    except OSError as error:
        os.close(descriptor)
        raise StoreUnavailable(f"DATA_DIR: {directory} cannot be locked: {error.strerror}") from error
    return descriptor


def _prepare(connection: sqlite3.Connection) -> str:
    """Set the connection up, bring the schema up to date; answers the installation's id."""
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    # FULL: a transaction is on the disk before anybody hears that it happened. In WAL mode that is one sync each.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}").fetchone()
    migrate(connection)
    connection.execute("INSERT OR IGNORE INTO facts VALUES ('installation', ?)", (secrets.token_hex(8),))
    return str(connection.execute("SELECT value FROM facts WHERE name = 'installation'").fetchone()[0])
