"""The SQLite file: a connection with a thread of its own, and the migrations of the schema."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from app.domain.errors import NotFound, StoreUnavailable

T = TypeVar("T")

_BUSY_SECONDS = 5.0
"""Maximum seconds to wait for a lock, which only a person with the sqlite3 shell can hold."""

_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
    sqlite3.SQLITE_BUSY: "another program holds the database",
    sqlite3.SQLITE_LOCKED: "another program holds the database",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_NOTADB: "the file is not a database of this service",
}


class Database:
    """One connection, used on one thread.

    A function runs there as a whole: one thread switch for many statements. A connection that is not `writable` sees
    what is committed and never waits for a writer.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._uri = f"{path.absolute().as_uri()}?mode={'rwc' if writable else 'ro'}"
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file.

        Raises:
            StoreUnavailable: The file cannot be opened.
        """
        self._connection = await self._call(self._connect)

    async def close(self) -> None:
        """Run what is waiting, then close the file and end the thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._call(connection.close)
        self._executor.shutdown(wait=False)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection on its thread and return its result.

        Raises:
            StoreUnavailable: SQLite failed, or the connection is closed.
        """
        connection = self._connection
        if connection is None:
            raise StoreUnavailable("the store is closed")
        return await self._call(lambda: work(connection))

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)
        except sqlite3.Error as error:
            raise _unavailable(error) from error

    def _connect(self) -> sqlite3.Connection:
        # No isolation level: the writer begins and ends transactions itself.
        return sqlite3.connect(self._uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)


def _unavailable(error: sqlite3.Error) -> StoreUnavailable:
    return StoreUnavailable(f"the store does not work now: {explain_failure(error)}")


def explain_failure(error: sqlite3.Error) -> str:
    """Return what failed, without paths and SQL."""
    # The low byte of an extended error code is the primary code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return _REASONS.get(code, "the database refused")


def ordinal_of(connection: sqlite3.Connection, session_id: str) -> int:
    """Return the ordinal of a session.

    Raises:
        NotFound: The session does not exist.
    """
    row = connection.execute("SELECT ordinal FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise NotFound("no such session")
    return int(row[0])


# The rows of a session are adjacent and in order, because their integer keys count up (see `codec.py`):
#   events:      session << 32 | number
#   transcripts: session << 33 | transcript << 32 | position
# So a page of events is one range scan, and an append touches one leaf of the table. `session` is the session's
# ordinal by creation. It is never used again, hence AUTOINCREMENT.
_V1 = (
    """CREATE TABLE sessions (
        ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        title TEXT NOT NULL DEFAULT '',
        status TEXT NOT NULL DEFAULT 'pending',
        latest_message TEXT NOT NULL DEFAULT '',
        latest_message_at INTEGER,
        created_at INTEGER NOT NULL,
        touched INTEGER NOT NULL,
        head INTEGER NOT NULL DEFAULT 0,
        last_words INTEGER NOT NULL DEFAULT 0,
        delivered INTEGER NOT NULL DEFAULT 0,
        unread INTEGER NOT NULL DEFAULT 0,
        talk INTEGER NOT NULL DEFAULT 0,
        work INTEGER NOT NULL DEFAULT 0,
        prompt_tokens INTEGER NOT NULL DEFAULT 0,
        cached_tokens INTEGER NOT NULL DEFAULT 0,
        completion_tokens INTEGER NOT NULL DEFAULT 0,
        calls INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX sessions_listed ON sessions (owner, touched DESC, ordinal DESC)",
    "CREATE INDEX sessions_active ON sessions (status) WHERE status = 'active'",
    # speaker: 1 the user, 2 the assistant, NULL if the event is not a message
    """CREATE TABLE events (
        key INTEGER PRIMARY KEY,
        type TEXT NOT NULL,
        speaker INTEGER,
        data BLOB NOT NULL
    ) STRICT""",
    "CREATE INDEX events_spoken ON events (speaker, key) WHERE speaker IS NOT NULL",
    "CREATE TABLE transcripts (key INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT",
    "CREATE TABLE runs (session INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT",
    """CREATE TABLE keys (
        session INTEGER NOT NULL,
        key TEXT NOT NULL,
        number INTEGER NOT NULL,
        PRIMARY KEY (session, key)
    ) STRICT, WITHOUT ROWID""",
)

# Deleted sessions whose rows still have to be deleted.
_V2 = ("CREATE TABLE leaving (session INTEGER PRIMARY KEY) STRICT",)

# Screenshots, by the ordinal of their session. Values of the whole store, such as the installation's id.
_V3 = (
    "CREATE TABLE pictures (session INTEGER NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL) STRICT",
    "CREATE UNIQUE INDEX pictures_by_id ON pictures (session, id)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
)

# Tickets, by the digest of their secret, with the ordinal of their session.
_V4 = (
    """CREATE TABLE tickets (
        digest TEXT PRIMARY KEY,
        session INTEGER NOT NULL,
        owner TEXT NOT NULL,
        view_only INTEGER NOT NULL,
        expires_at REAL NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX tickets_of_session ON tickets (session, expires_at)",
    "CREATE INDEX tickets_by_end ON tickets (expires_at)",
)

# The revision of the checkpoint, in a column of its own: every commit of a run compares it.
_V5 = ("ALTER TABLE runs ADD COLUMN revision TEXT NOT NULL DEFAULT ''",)

# The names that the code and the other store use. "pictures" was the first name of the screenshots.
_V6 = (
    "ALTER TABLE sessions RENAME COLUMN head TO last_event",
    "ALTER TABLE sessions RENAME COLUMN last_words TO last_user_message",
    "ALTER TABLE sessions RENAME COLUMN touched TO last_activity",
    "ALTER TABLE sessions RENAME COLUMN talk TO planner_messages",
    "ALTER TABLE sessions RENAME COLUMN work TO executor_messages",
    "ALTER TABLE runs RENAME TO checkpoints",
    "ALTER TABLE checkpoints RENAME COLUMN state TO data",
    "ALTER TABLE keys RENAME TO message_keys",
    "ALTER TABLE pictures RENAME TO screenshots",
    "ALTER TABLE leaving RENAME TO deletions",
    "ALTER TABLE facts RENAME TO metadata",
)

# The model profile of a session, empty for the default, and its cost, NULL until a price is known.
_V7 = (
    "ALTER TABLE sessions ADD COLUMN model TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE sessions ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE sessions ADD COLUMN cost REAL",
)

# The title that the user gave a session, empty if the agent names it.
_V8 = ("ALTER TABLE sessions ADD COLUMN given_title TEXT NOT NULL DEFAULT ''",)

# The status of a session with a run is called as clients call it. Whether the user pinned the session.
_V9 = (
    "DROP INDEX sessions_active",
    "UPDATE sessions SET status = 'running' WHERE status = 'active'",
    "CREATE INDEX sessions_running ON sessions (status) WHERE status = 'running'",
    "ALTER TABLE sessions ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0",
)

# The running sessions of an owner. The tokens that all runs of an owner used on the newest day of a commit, in
# days since the epoch, UTC.
_V10 = (
    "CREATE INDEX sessions_running_by_owner ON sessions (owner) WHERE status = 'running'",
    """CREATE TABLE daily_tokens (
        owner TEXT PRIMARY KEY,
        day INTEGER NOT NULL,
        tokens INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)

# Where the newest user message came from, for metrics and traces.
_V11 = ("ALTER TABLE sessions ADD COLUMN origin TEXT NOT NULL DEFAULT ''",)

# The audit log. The triggers refuse every other change than adding the next record; also `INSERT OR REPLACE`, which
# replaces a row without firing triggers for deletions.
_V12 = (
    """CREATE TABLE audit (
        number INTEGER PRIMARY KEY,
        session TEXT NOT NULL,
        data BLOB NOT NULL,
        hash TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX audit_by_session ON audit (session, number) WHERE session != ''",
    "CREATE TRIGGER audit_next BEFORE INSERT ON audit"
    " WHEN new.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM audit)"
    " BEGIN SELECT raise(ABORT, 'the audit log takes only its next record'); END",
    "CREATE TRIGGER audit_kept BEFORE DELETE ON audit"
    " BEGIN SELECT raise(ABORT, 'records of the audit log are not deleted'); END",
    "CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit"
    " BEGIN SELECT raise(ABORT, 'records of the audit log are not changed'); END",
)

MIGRATIONS = (_V1, _V2, _V3, _V4, _V5, _V6, _V7, _V8, _V9, _V10, _V11, _V12)
"""Statements that lead from schema version i to i + 1. `PRAGMA user_version` is the version of a file.

A migration that was released never changes.
"""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema to the newest version. Each migration is one transaction.

    Raises:
        StoreUnavailable: A newer version of this program wrote the file.
        sqlite3.Error: The database does not work.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise StoreUnavailable(
            f"the database has version {version}, this program knows up to {len(MIGRATIONS)}: use a newer program"
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.rollback()
            raise
