"""The writing half of the SQLite store: group commit, and the writes of all storage ports in plain SQL.

All writes that wait go into one transaction, and so to the disk at once.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from app.domain.errors import Conflict, NotFound
from app.domain.models.audit import AuditEntry, AuditRecord, chain
from app.domain.models.event import EventRecord
from app.domain.repositories.event_log import Commit, StoredMessage
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from app.infrastructure.persistence import codec
from app.infrastructure.persistence.group_commit import (
    CommittedEvents,
    GroupCommitQueue,
    OnCommitted,
    WrittenBatch,
    attempt,
)
from app.infrastructure.persistence.session_summary import check_timestamp
from app.infrastructure.persistence.session_update import (
    EncodeEvent,
    ReceiveRequest,
    RenameRequest,
    SessionCursor,
    SessionUpdate,
)
from app.infrastructure.persistence.sqlite.database import Database, ordinal_of

T = TypeVar("T")

_MAX_BATCH = 256
"""Maximum number of writes in one transaction, so that the first of them does not wait long."""

_MAX_CURSORS = 1024
"""Maximum number of sessions whose cursor stays in memory; the next write to another session reads it."""

_DELETED_ROWS = 2000
"""Maximum number of rows that one deleting transaction removes, so that other writes need not wait long."""

_DELETED_SCREENSHOTS = 100
"""The same for screenshots, each of which fills some ten pages of the file."""

_CURSOR = """
SELECT ordinal, last_event, last_user_message, planner_messages, executor_messages, coalesce(revision, ''), title
FROM sessions LEFT JOIN checkpoints ON checkpoints.session = ordinal WHERE id = ?
"""
_PUT_CHECKPOINT = """
INSERT INTO checkpoints (session, data, revision) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET data = excluded.data, revision = excluded.revision
"""
_COUNT_TOKENS = """
INSERT INTO daily_tokens (owner, day, tokens) SELECT owner, ?, ? FROM sessions WHERE ordinal = ?
ON CONFLICT DO UPDATE SET
    day = max(day, excluded.day),
    tokens = CASE WHEN day < excluded.day THEN excluded.tokens ELSE tokens + excluded.tokens END
"""
AUDIT_COLUMNS = "SELECT number, session, data, hash FROM audit"
_AUDIT_HEAD = f"{AUDIT_COLUMNS} ORDER BY number DESC LIMIT 1"
_REDEEM_TICKET = """
DELETE FROM tickets
WHERE digest = ? AND session = (SELECT ordinal FROM sessions WHERE id = ?) AND expires_at > ?
RETURNING owner, view_only, expires_at
"""


def audit_record(number: int, session_id: str, data: bytes, record_hash: str) -> AuditRecord:
    """Return the record of a row of `AUDIT_COLUMNS`."""
    return AuditRecord(number=number, session_id=session_id, data=data, hash=record_hash)


class Transaction:
    """Any number of writes, committed together by `finish`.

    A write checks and encodes everything before it changes anything: a refused write leaves no trace, and the other
    writes of the transaction go on.
    """

    def __init__(
        self, connection: sqlite3.Connection, cached_cursors: dict[str, SessionCursor], encode: EncodeEvent
    ) -> None:
        self._connection = connection
        self._cached_cursors = cached_cursors
        self._encode = encode
        self._updates: dict[str, SessionUpdate] = {}
        """Updates that are not written yet."""
        self._cursors: dict[str, SessionCursor] = {}
        """Cursors of the updates that are written."""
        self.committed: list[CommittedEvents] = []
        """Events of this transaction, in the order of the writes."""

    def finish(self) -> None:
        """Write the updates and commit. On return everything is on the disk."""
        for session_id in list(self._updates):
            self._flush(session_id)
        self._connection.execute("COMMIT")
        self._cached_cursors.update(self._cursors)

    def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Implement `EventLog.commit`."""
        return self._update(session_id).commit(commit)

    def append_user_message(self, session_id: str, request: ReceiveRequest) -> StoredMessage:
        """Implement `EventLog.append_user_message`."""
        update = self._update(session_id)
        key, ordinal = request.key, update.cursor.ordinal
        if key is not None and key not in update.message_keys:
            query = "SELECT number FROM message_keys WHERE session = ? AND key = ?"
            row = self._connection.execute(query, (ordinal, key)).fetchone()
            if row is not None:
                update.message_keys[key] = row[0]
        return update.receive(request)

    def rename_session(self, session_id: str, request: RenameRequest) -> None:
        """Implement `EventLog.rename_session`."""
        self._update(session_id).rename(request)

    def set_pinned(self, session_id: str, owner: str, *, is_pinned: bool) -> None:
        """Implement `SessionRepository.set_pinned`."""
        update = "UPDATE sessions SET is_pinned = ? WHERE id = ? AND owner = ?"
        if not self._connection.execute(update, (is_pinned, session_id, owner)).rowcount:
            raise NotFound("no such session")

    def assign_unowned(self, owner: str) -> int:
        """Implement `SessionRepository.assign_unowned`."""
        return self._connection.execute("UPDATE sessions SET owner = ? WHERE owner = ''", (owner,)).rowcount

    def create_session(self, session_id: str, owner: str, timestamp: int, *, model: str, title: str) -> None:
        """Implement `SessionRepository.create`."""
        check_timestamp(timestamp)
        if self._connection.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone():
            raise Conflict("a session with this id exists")
        columns = "id, owner, created_at, last_activity, model, title, given_title"
        values = (session_id, owner, timestamp, timestamp, model, title, title)
        self._connection.execute(f"INSERT INTO sessions ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608

    def mark_delivered(self, session_id: str, number: int) -> bool:
        """Implement `SessionRepository.mark_delivered`."""
        self._flush(session_id)
        query = "SELECT ordinal, last_event, delivered, unread FROM sessions WHERE id = ?"
        row = self._connection.execute(query, (session_id,)).fetchone()
        if row is None:
            raise NotFound("no such session")
        ordinal, last_event, delivered_before, unread_before = row
        delivered = min(number, last_event)
        if unread_before == 0 or delivered <= delivered_before:
            return False
        query = "SELECT count(*) FROM events WHERE speaker = ? AND key > ? AND key < ?"
        span = (codec.event_key(ordinal, delivered), codec.event_keys(ordinal)[1])
        unread = self._connection.execute(query, (codec.ASSISTANT, *span)).fetchone()[0]
        if unread == unread_before:
            return False  # no message lies between the marks, so the old one gives the same count
        update = "UPDATE sessions SET delivered = ?, unread = ? WHERE ordinal = ?"
        self._connection.execute(update, (delivered, unread, ordinal))
        return True

    def delete_session(self, session_id: str, owner: str) -> bool:
        """Delete a session, see `SessionRepository.delete`. Return whether `delete_rows` has to delete more rows."""
        self._flush(session_id)
        query = "SELECT ordinal FROM sessions WHERE id = ? AND owner = ?"
        row = self._connection.execute(query, (session_id, owner)).fetchone()
        if row is None:
            raise NotFound("no such session")
        self._connection.execute("DELETE FROM sessions WHERE ordinal = ?", row)
        self._connection.execute("INSERT INTO deletions (session) VALUES (?)", row)
        self._cursors.pop(session_id, None)
        self._cached_cursors.pop(session_id, None)
        return self.delete_rows()

    def delete_rows(self) -> bool:
        """Delete a limited number of rows of deleted sessions. Return whether there are more."""
        row = self._connection.execute("SELECT session FROM deletions LIMIT 1").fetchone()
        if row is None:
            return False
        ordinal = row[0]
        for table, keys in (("events", codec.event_keys(ordinal)), ("transcripts", codec.transcript_keys(ordinal))):
            if self._delete_some(table, "key", "key >= ? AND key < ?", keys, _DELETED_ROWS):
                return True
        if self._delete_some("screenshots", "rowid", "session = ?", row, _DELETED_SCREENSHOTS):
            return True
        for table in ("checkpoints", "message_keys", "tickets", "deletions"):
            self._connection.execute(f"DELETE FROM {table} WHERE session = ?", row)  # noqa: S608
        return self._connection.execute("SELECT 1 FROM deletions LIMIT 1").fetchone() is not None

    def put_screenshot(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Implement `ScreenshotRepository.put`."""
        ordinal = ordinal_of(self._connection, session_id)
        insert = "INSERT INTO screenshots (session, id, data) VALUES (?, ?, ?)"
        self._connection.execute(insert, (ordinal, screenshot_id, jpeg))

    def put_ticket(self, digest: str, ticket: Ticket, at: float) -> None:
        """Implement `TicketRepository.put`."""
        ordinal = ordinal_of(self._connection, ticket.session_id)
        query = "SELECT count(*), min(expires_at) FROM tickets WHERE session = ? AND expires_at > ?"
        count, first_end = self._connection.execute(query, (ordinal, at)).fetchone()
        if count >= MAX_TICKETS:
            raise too_many_tickets(first_end - at)
        self._connection.execute("DELETE FROM tickets WHERE expires_at <= ?", (at,))
        insert = "INSERT INTO tickets (digest, session, owner, view_only, expires_at) VALUES (?, ?, ?, ?, ?)"
        self._connection.execute(insert, (digest, ordinal, ticket.owner, ticket.view_only, ticket.expires_at))

    def redeem_ticket(self, digest: str, session_id: str, at: float) -> Ticket | None:
        """Implement `TicketRepository.redeem`."""
        row = self._connection.execute(_REDEEM_TICKET, (digest, session_id, at)).fetchone()
        if row is None:
            return None
        return Ticket(session_id=session_id, owner=row[0], view_only=bool(row[1]), expires_at=row[2])

    def append_audit(self, entry: AuditEntry) -> AuditRecord:
        """Implement `AuditLog.append`."""
        row = self._connection.execute(_AUDIT_HEAD).fetchone()
        record = chain([entry], None if row is None else audit_record(*row))[0]
        insert = "INSERT INTO audit (number, session, data, hash) VALUES (?, ?, ?, ?)"
        self._connection.execute(insert, (record.number, record.session_id, record.data, record.hash))
        return record

    def test_writing(self) -> None:
        """Write without changing anything, to find out whether the disk takes writes."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        self._connection.execute(f"PRAGMA user_version = {version}")

    def _update(self, session_id: str) -> SessionUpdate:
        update = self._updates.get(session_id)
        if update is None:
            cursor = self._cursors.get(session_id) or self._cached_cursors.get(session_id) or self._load(session_id)
            update = SessionUpdate(session_id, cursor, self._encode, committed=self.committed)
            self._updates[session_id] = update
        return update

    def _load(self, session_id: str) -> SessionCursor:
        row = self._connection.execute(_CURSOR, (session_id,)).fetchone()
        if row is None:
            raise NotFound("no such session")
        return SessionCursor(*row)

    def _flush(self, session_id: str) -> None:
        """Write the update of a session, if there is one."""
        update = self._updates.pop(session_id, None)
        if update is None:
            return
        ordinal = update.cursor.ordinal
        execute, executemany = self._connection.execute, self._connection.executemany
        executemany("INSERT INTO events (key, type, speaker, data) VALUES (?, ?, ?, ?)", update.events)
        executemany("INSERT INTO transcripts (key, data) VALUES (?, ?)", update.messages)
        keys = [(ordinal, key, number) for key, number in update.new_keys.items()]
        executemany("INSERT INTO message_keys (session, key, number) VALUES (?, ?, ?)", keys)
        if update.checkpoint is not None:
            execute(_PUT_CHECKPOINT, (ordinal, update.checkpoint, update.cursor.revision))
        changes = [f"{name} = ?" for name in update.fields] + [
            f"{name} = coalesce({name}, 0) + ?" for name in update.increments
        ]
        if changes:
            values = (*update.fields.values(), *update.increments.values(), ordinal)
            execute(f"UPDATE sessions SET {', '.join(changes)} WHERE ordinal = ?", values)  # noqa: S608
        executemany(_COUNT_TOKENS, [(day, tokens, ordinal) for day, tokens in update.daily_tokens.items()])
        self._cursors[session_id] = update.cursor

    def _delete_some(self, table: str, key: str, condition: str, values: tuple[int, ...], limit: int) -> bool:
        """Delete up to `limit` rows. Return whether there may be more."""
        rows = f"SELECT {key} FROM {table} WHERE {condition} LIMIT ?"  # noqa: S608
        delete = f"DELETE FROM {table} WHERE {key} IN ({rows})"  # noqa: S608
        return self._connection.execute(delete, (*values, limit)).rowcount == limit


Work = Callable[[Transaction], T]
"""One write, called on the writing thread."""


class Writer(GroupCommitQueue[Work[object]]):
    """The one writer of the database."""

    def __init__(self, database: Database, encode: EncodeEvent, on_committed: OnCommitted) -> None:
        super().__init__(_MAX_BATCH, on_committed)
        self._database = database
        self._encode = encode
        self._cursors: dict[str, SessionCursor] = {}
        """Cursors as they are in the database. Only the writing thread uses them."""
        self.last_failure: str | None = None
        """Why the last transaction failed; None if it succeeded."""

    async def write(self, work: Work[T]) -> T:
        """Run `work` in the next transaction, and return its result once that is on the disk.

        Cancelling a caller that waits does not undo the write.

        Raises:
            StoreUnavailable: Nothing was written.
            AnkerError: `work` raised it; nothing of this write was written.
        """
        return await self.put(work)

    async def _write(self, requests: Sequence[Work[object]]) -> WrittenBatch:
        try:
            written = await self._database.run(lambda connection: self._transact(connection, requests))
        except Exception as failure:
            self.last_failure = str(failure) or type(failure).__name__
            raise
        self.last_failure = None
        return written

    def _transact(self, connection: sqlite3.Connection, works: Sequence[Work[object]]) -> WrittenBatch:
        """Run all of `works` in one transaction, on the writing thread."""
        if len(self._cursors) > _MAX_CURSORS:
            self._cursors.clear()
        transaction = Transaction(connection, self._cursors, self._encode)
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [attempt(lambda w=work: w(transaction)) for work in works]
            transaction.finish()
        except BaseException:
            connection.rollback()
            raise
        return WrittenBatch(outcomes, transaction.committed)
