"""An aiosqlite connection that does a whole piece of work in one visit to its thread, and speaks our errors."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import aiosqlite

from app.domain.errors import StoreUnavailable

T = TypeVar("T")

_BUSY_SECONDS = 5.0
"""How long we wait for a lock. Nobody else should hold one, but a person with the sqlite3 shell may."""

_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk does not read or write",
    sqlite3.SQLITE_BUSY: "another program holds the database",
    sqlite3.SQLITE_LOCKED: "another program holds the database",
    sqlite3.SQLITE_READONLY: "the database may not be written",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_NOTADB: "the file is no database of ours",
}


class Database(aiosqlite.Connection):
    """One connection and its thread. `writable=False` sees what is committed and never waits for a writer."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        mode = "rwc" if writable else "ro"
        uri = f"{path.absolute().as_uri()}?mode={mode}"

        def connect() -> sqlite3.Connection:
            # Transactions are ours to begin and end, hence no isolation level.
            return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)

        super().__init__(connect, 64)

    async def open(self) -> None:
        """Start the thread and open the file.

        Raises:
            StoreUnavailable: it cannot be opened.
        """
        try:
            await self
        except sqlite3.Error as error:
            raise unavailable(error) from error

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection on its thread, and answer its answer. A cancelled caller does not stop it.

        aiosqlite's own methods cost a thread switch for each statement; this is one for all of them. It goes through
        the method that aiosqlite builds its own on, and the version is pinned.

        Raises:
            StoreUnavailable: SQLite failed, or the connection is closed.
        """
        if not self._running or self._connection is None:
            raise StoreUnavailable("the store is closed")
        try:
            answer: object = await self._execute(work, self._conn)  # pyright: ignore[reportUnknownMemberType]
        except sqlite3.Error as error:
            raise unavailable(error) from error
        return cast("T", answer)


def unavailable(error: sqlite3.Error) -> StoreUnavailable:
    """`error` in words for whoever waits for the store; no path, no SQL."""
    # The low byte of an extended code is the primary one.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return StoreUnavailable(f"the store does not work now: {_REASONS.get(code, 'the database refused')}")
