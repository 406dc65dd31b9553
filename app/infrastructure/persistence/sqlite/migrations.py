"""The database's schema, one migration a version. A migration that was released never changes."""

import sqlite3

from app.domain.errors import StoreUnavailable

# Every session's rows lie together, in order, behind one integer key that counts up:
#   events:      session << 32 | number
#   transcripts: session << 33 | thread << 32 | position
# so that a page of events is one walk along the table, and an append touches one leaf of it. `session` is the
# session's ordinal by creation (never used again, hence AUTOINCREMENT).
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
    # speaker: 1 the user, 2 the assistant, NULL for what is no message
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

# Sessions that were deleted and whose rows are still being cleared away.
_V2 = ("CREATE TABLE leaving (session INTEGER PRIMARY KEY) STRICT",)

# Screenshots, by their session's ordinal. What there is one of in a whole store, such as the installation's id.
_V3 = (
    "CREATE TABLE pictures (session INTEGER NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL) STRICT",
    "CREATE UNIQUE INDEX pictures_by_id ON pictures (session, id)",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
)

# Tickets, by a digest of what their holder shows, with their session's ordinal.
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

# The name of the checkpoint, beside it: every change of a run asks for it.
_V5 = ("ALTER TABLE runs ADD COLUMN revision TEXT NOT NULL DEFAULT ''",)

MIGRATIONS = (_V1, _V2, _V3, _V4, _V5)
"""Statements that lead from version i to i + 1; `PRAGMA user_version` says where a file stands."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to the newest version, each step wholly or not at all.

    Raises:
        StoreUnavailable: a newer program wrote it.
        sqlite3.Error: the database does not work.
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
