"""What a transaction can do: the writing half of both ports, in plain synchronous SQL on the writing thread."""

import sqlite3
from collections.abc import Callable, Sequence

from app.domain.errors import Conflict, NotFound, Superseded
from app.domain.models.event import Event, EventRecord, MessageEvent
from app.domain.models.session import changes_of
from app.domain.repositories.event_log import Commit, StoredMessage
from app.infrastructure.persistence.codec import encode_message, encode_run
from app.infrastructure.persistence.listing import check_time, preview, well_formed
from app.infrastructure.persistence.rows import ASSISTANT, LAST_NUMBER, event_key, speaker_of, transcript_key
from app.infrastructure.persistence.sqlite.heads import Head, Heads, save

Encode = Callable[[Event, int, int], bytes]
"""An event, its number and its time (seconds since the epoch) to the JSON that is stored and sent."""

_INSERT_EVENT = "INSERT INTO events (key, type, speaker, data) VALUES (?, ?, ?, ?)"
_INSERT_SAID = "INSERT INTO transcripts (key, data) VALUES (?, ?)"
_PUT_RUN = """INSERT INTO runs (session, state, revision) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET state = excluded.state, revision = excluded.revision"""
_INSERT_SESSION = "INSERT INTO sessions (id, owner, created_at, touched) VALUES (?, ?, ?, ?)"
_CLEAR_EVENTS = "DELETE FROM events WHERE key IN (SELECT key FROM events WHERE key BETWEEN ? AND ? LIMIT ?)"
_CLEAR_SAID = "DELETE FROM transcripts WHERE key IN (SELECT key FROM transcripts WHERE key BETWEEN ? AND ? LIMIT ?)"
_CLEARED_AT_ONCE = 2000
_INSERT_SCREENSHOT = "INSERT INTO pictures (session, id, data) VALUES (?, ?, ?)"
_CLEAR_SCREENSHOTS = "DELETE FROM pictures WHERE rowid IN (SELECT rowid FROM pictures WHERE session = ? LIMIT ?)"
_SCREENSHOTS_AT_ONCE = 100
"""Each is some ten pages of the file, an event a part of one."""
_COUNT_UNREAD = "SELECT count(*) FROM events WHERE speaker = ? AND key > ? AND key <= ?"


class Ledger:
    """One connection's transactions, one at a time: `begin`, any number of operations, then `end` or `undo`.

    An operation checks and encodes everything before it writes anything, so that one that is refused leaves nothing
    behind and the others of its transaction go on.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._heads = Heads()
        self._touched: set[str] = set()
        self._changed: dict[str, Head] = {}

    def begin(self, connection: sqlite3.Connection) -> None:
        """Start a transaction."""
        connection.execute("BEGIN IMMEDIATE")

    def end(self, connection: sqlite3.Connection) -> None:
        """Write what is still only in memory, and commit: on return it is on the disk."""
        if self._changed:
            save(connection, self._changed.values())
        connection.execute("COMMIT")
        self._changed.clear()
        self._touched.clear()
        self._heads.trim()

    def undo(self, connection: sqlite3.Connection) -> None:
        """Roll back, and forget what memory knew of the sessions concerned."""
        for session_id in self._touched:
            self._heads.forget(session_id)
        self._changed.clear()
        self._touched.clear()
        if connection.in_transaction:
            connection.rollback()

    def commit(self, connection: sqlite3.Connection, session_id: str, change: Commit) -> Sequence[EventRecord]:
        """See `EventLog.commit`."""
        check_time(change.timestamp)
        head = self._head(connection, session_id)
        if change.is_already_stored(head.revision):
            return ()
        if change.ends_after_message is not None and head.last_words > change.ends_after_message:
            raise Superseded("a newer message is waiting to be read")
        records = self._records(head, change.events, change.timestamp)
        said, lengths = _said_rows(head, change)
        state = None if change.checkpoint is None else encode_run(change.checkpoint)
        self._insert(connection, head, change.events, records)
        if said:
            connection.executemany(_INSERT_SAID, said)
            head.talk, head.work = lengths
        if change.checkpoint is not None:
            connection.execute(_PUT_RUN, (head.ordinal, state, change.checkpoint.revision))
            head.revision = change.checkpoint.revision
        if change.usage is not None:
            head.usage += change.usage
        if change.events:
            _fold(head, change.events, change.timestamp)
        if change.events or said or change.usage is not None:
            self._changed[session_id] = head
        return records

    def receive(
        self, connection: sqlite3.Connection, session_id: str, content: str, at: int, key: str | None
    ) -> tuple[StoredMessage, Sequence[EventRecord]]:
        """See `EventLog.append_user_message`; the records are empty when the key was known."""
        check_time(at)
        head = self._head(connection, session_id)
        if key is not None:
            key = well_formed(key)
            known = connection.execute(
                "SELECT number FROM keys WHERE session = ? AND key = ?", (head.ordinal, key)
            ).fetchone()
            if known is not None:
                return StoredMessage(number=known[0], is_new=False), ()
        events = (MessageEvent(role="user", content=content),)
        records = self._records(head, events, at)
        number = records[0].number
        self._insert(connection, head, events, records)
        if key is not None:
            connection.execute("INSERT INTO keys (session, key, number) VALUES (?, ?, ?)", (head.ordinal, key, number))
        _fold(head, events, at)
        self._changed[session_id] = head
        return StoredMessage(number=number, is_new=True), records

    def create(self, connection: sqlite3.Connection, session_id: str, owner: str, at: int) -> None:
        """See `SessionRepository.create`."""
        check_time(at)
        if connection.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone():
            raise Conflict("there is a session of this id")
        connection.execute(_INSERT_SESSION, (session_id, owner, at, at))

    def mark_delivered(self, connection: sqlite3.Connection, session_id: str, number: int) -> bool:
        """See `SessionRepository.mark_delivered`."""
        head = self._head(connection, session_id)
        delivered = min(number, head.head)
        if head.unread == 0 or delivered <= head.delivered:
            return False
        unread = 0
        if delivered < head.head:
            span = (event_key(head.ordinal, delivered), event_key(head.ordinal, LAST_NUMBER))
            unread = connection.execute(_COUNT_UNREAD, (ASSISTANT, *span)).fetchone()[0]
        if unread == head.unread:
            return False  # no message in between: the old mark says the same
        head.delivered, head.unread = delivered, unread
        self._changed[session_id] = head
        return True

    def delete(self, connection: sqlite3.Connection, session_id: str, owner: str) -> bool:
        """See `SessionRepository.delete`. True while rows of it remain for `clear_away`; nobody sees them any more."""
        head = self._head(connection, session_id)
        if head.owner != owner:
            raise NotFound("no such session")
        connection.execute("DELETE FROM sessions WHERE ordinal = ?", (head.ordinal,))
        connection.execute("INSERT INTO leaving (session) VALUES (?)", (head.ordinal,))
        self._heads.forget(session_id)
        self._changed.pop(session_id, None)
        return self.clear_away(connection)

    def store_screenshot(
        self, connection: sqlite3.Connection, session_id: str, screenshot_id: str, jpeg: bytes
    ) -> None:
        """See `ScreenshotRepository.put`."""
        connection.execute(_INSERT_SCREENSHOT, (self._head(connection, session_id).ordinal, screenshot_id, jpeg))

    def clear_away(self, connection: sqlite3.Connection) -> bool:
        """Remove some of what deleted sessions left; True while there is more.

        Bounded, because a long session's rows take a second and other sessions want to write meanwhile.
        """
        row = connection.execute("SELECT session FROM leaving LIMIT 1").fetchone()
        if row is None:
            return False
        ordinal = row[0]
        for statement, shift in ((_CLEAR_EVENTS, 32), (_CLEAR_SAID, 33)):
            span = (ordinal << shift, ordinal + 1 << shift)
            if connection.execute(statement, (*span, _CLEARED_AT_ONCE)).rowcount == _CLEARED_AT_ONCE:
                return True
        if connection.execute(_CLEAR_SCREENSHOTS, (ordinal, _SCREENSHOTS_AT_ONCE)).rowcount == _SCREENSHOTS_AT_ONCE:
            return True
        connection.execute("DELETE FROM runs WHERE session = ?", (ordinal,))
        connection.execute("DELETE FROM keys WHERE session = ?", (ordinal,))
        connection.execute("DELETE FROM tickets WHERE session = ?", (ordinal,))
        connection.execute("DELETE FROM leaving WHERE session = ?", (ordinal,))
        return connection.execute("SELECT 1 FROM leaving LIMIT 1").fetchone() is not None

    def probe(self, connection: sqlite3.Connection) -> None:
        """Write something that changes nothing, to see whether writing works."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA user_version = {version}")

    def _head(self, connection: sqlite3.Connection, session_id: str) -> Head:
        self._touched.add(session_id)
        return self._heads.get(connection, session_id)

    def _records(self, head: Head, events: Sequence[Event], at: int) -> list[EventRecord]:
        first = head.head + 1
        return [
            EventRecord(number, event.type, self._encode(event, number, at))
            for number, event in enumerate(events, start=first)
        ]

    def _insert(
        self, connection: sqlite3.Connection, head: Head, events: Sequence[Event], records: Sequence[EventRecord]
    ) -> None:
        connection.executemany(
            _INSERT_EVENT,
            [
                (event_key(head.ordinal, record.number), record.type, speaker_of(event), record.data)
                for event, record in zip(events, records, strict=True)
            ],
        )


def _fold(head: Head, events: Sequence[Event], at: int) -> None:
    """Bring the summary up to date with `events`, which follow the head."""
    changes = changes_of(events)
    if changes.user_messages:
        users = (index for index, event in enumerate(reversed(events)) if _is_users(event))
        head.last_words = head.head + len(events) - next(users)
    head.head += len(events)
    head.unread += changes.assistant_messages
    if changes.title is not None:
        head.title, head.summary_changed = well_formed(changes.title), True
    if changes.status is not None and changes.status != head.status:
        head.status, head.summary_changed = changes.status, True
    if changes.latest_message is not None:
        head.latest_message, head.latest_message_at = preview(changes.latest_message), at
        head.touched, head.summary_changed = at, True


def _is_users(event: Event) -> bool:
    return isinstance(event, MessageEvent) and event.role == "user"


def _said_rows(head: Head, change: Commit) -> tuple[list[tuple[int, bytes]], tuple[int, int]]:
    """The rows of what was said, and the lengths of both transcripts after it."""
    lengths = {"planner": head.talk, "executor": head.work}
    rows: list[tuple[int, bytes]] = []
    for thread, message in change.messages:
        lengths[thread] += 1
        rows.append((transcript_key(head.ordinal, thread, lengths[thread]), encode_message(message)))
    return rows, (lengths["planner"], lengths["executor"])
