"""The storage ports over SQLite: one writer writes, and a connection of its own reads."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import orjson

from app.domain.errors import NotFound, StoreUnavailable
from app.domain.models.audit import AuditEntry, AuditRecord
from app.domain.models.event import EventRecord
from app.domain.models.message import TranscriptEntry
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.models.session import Session, SessionPage
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.domain.repositories.tickets import Ticket
from app.infrastructure.persistence import codec, session_summary
from app.infrastructure.persistence.session_update import ReceiveRequest, RenameRequest
from app.infrastructure.persistence.sqlite.database import Database, ordinal_of
from app.infrastructure.persistence.sqlite.writer import AUDIT_COLUMNS, Writer, audit_record

T = TypeVar("T")

_Row = tuple[Any, ...]

_NUMBER = f"key & {codec.MAX_NUMBER}"
_EVENTS = f"SELECT {_NUMBER}, type, data FROM events WHERE key > ? AND key <= ? ORDER BY key LIMIT ?"  # noqa: S608
_MESSAGES = f"SELECT {_NUMBER}, data FROM events WHERE speaker = ? AND key > ? AND key <= ? ORDER BY key"  # noqa: S608
_TRANSCRIPT = "SELECT data FROM transcripts WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?"

_LISTED = f"SELECT id, {', '.join(session_summary.LISTED_FIELDS)} FROM sessions"  # noqa: S608
_FIRST_PAGE = f"{_LISTED} WHERE owner = ? ORDER BY last_activity DESC, ordinal DESC LIMIT ?"
_NEXT_PAGE = (
    f"{_LISTED} WHERE owner = ? AND (last_activity, ordinal) < (?, ?) ORDER BY last_activity DESC, ordinal DESC LIMIT ?"
)
_ALL_PAGE = f"{_LISTED} WHERE ordinal < ? ORDER BY ordinal DESC LIMIT ?"
_LAST_EVENTS = "SELECT id, last_event FROM sessions WHERE id IN (SELECT value FROM json_each(?))"
_CHECKPOINT = """
SELECT data, model, given_title, title, origin FROM sessions LEFT JOIN checkpoints ON session = ordinal WHERE id = ?
"""
_MESSAGE_OF_KEY = """
SELECT message_keys.number FROM message_keys JOIN sessions ON sessions.ordinal = message_keys.session
WHERE sessions.id = ? AND message_keys.key = ?
"""
_TOKENS = "SELECT tokens FROM daily_tokens WHERE owner = (SELECT owner FROM sessions WHERE id = ?) AND day >= ?"
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM sessions WHERE owner = ? LIMIT ?)"
_COUNT_RUNNING = "SELECT count(*) FROM (SELECT 1 FROM sessions WHERE owner = ? AND status = 'running' LIMIT ?)"
_SCREENSHOT = """
SELECT screenshots.data FROM screenshots JOIN sessions ON sessions.ordinal = screenshots.session
WHERE sessions.id = ? AND screenshots.id = ?
"""
_SCREENSHOT_IDS = """
SELECT screenshots.id FROM screenshots JOIN sessions ON sessions.ordinal = screenshots.session
WHERE sessions.id = ? ORDER BY screenshots.rowid
"""
_AUDIT = f"{AUDIT_COLUMNS} WHERE number > ? ORDER BY number LIMIT ?"
_AUDIT_OF_SESSION = f"{AUDIT_COLUMNS} WHERE session = ? AND session != '' AND number > ? ORDER BY number LIMIT ?"


class _Repository:
    """A connection for reading, and the writer."""

    def __init__(self, reader: Database, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def _rows(self, query: str, *values: object) -> list[_Row]:
        return await self._reader.run(lambda connection: connection.execute(query, values).fetchall())


class SqliteEventLog(_Repository):
    """Implements `EventLog`."""

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Implement `EventLog.commit`."""
        return await self._writer.write(lambda transaction: transaction.commit(session_id, commit))

    async def append_user_message(
        self,
        session_id: str,
        content: str,
        *,
        at: int,
        key: str | None,
        model: str | None = None,
        origin: str = "",
    ) -> StoredMessage:
        """Implement `EventLog.append_user_message`."""
        request = ReceiveRequest(content, at, None if key is None else codec.well_formed(key), model, origin)
        return await self._writer.write(lambda transaction: transaction.append_user_message(session_id, request))

    async def find_message(self, session_id: str, key: str) -> int | None:
        """Implement `EventLog.find_message`."""
        rows = await self._rows(_MESSAGE_OF_KEY, session_id, codec.well_formed(key))
        return int(rows[0][0]) if rows else None

    async def tokens_of_owner(self, session_id: str, *, day: int) -> int:
        """Implement `EventLog.tokens_of_owner`."""
        rows = await self._rows(_TOKENS, session_id, day)
        return int(rows[0][0]) if rows else 0

    async def rename_session(self, session_id: str, title: str, *, at: int) -> None:
        """Implement `EventLog.rename_session`."""
        request = RenameRequest(title, at)
        await self._writer.write(lambda transaction: transaction.rename_session(session_id, request))

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        """Implement `EventLog.read`."""

        def query(connection: sqlite3.Connection, ordinal: int) -> Sequence[EventRecord]:
            span = (codec.event_key(ordinal, after), codec.event_key(ordinal, codec.MAX_NUMBER))
            return codec.take(map(EventRecord._make, connection.execute(_EVENTS, (*span, limit))), max_bytes)

        return await self._read(session_id, query)

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """Implement `EventLog.unread_messages`."""

        def query(connection: sqlite3.Connection, ordinal: int) -> Sequence[UnreadMessage]:
            span = (codec.event_key(ordinal, after), codec.event_key(ordinal, codec.MAX_NUMBER))
            rows = connection.execute(_MESSAGES, (codec.USER, *span))
            return [UnreadMessage(number=number, content=orjson.loads(data)["content"]) for number, data in rows]

        return await self._read(session_id, query)

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """Implement `EventLog.load_checkpoint`."""
        rows = await self._rows(_CHECKPOINT, session_id)
        if not rows:
            raise NotFound("no such session")
        data, model, given_title, title, origin = rows[0]
        return codec.decode_checkpoint(data, model=model, given_title=given_title, title=title, origin=origin)

    async def load_transcript(
        self, session_id: str, transcript: TranscriptName, *, after: int = 0, limit: int | None = None
    ) -> Sequence[TranscriptEntry]:
        """Implement `EventLog.load_transcript`."""

        def query(connection: sqlite3.Connection, ordinal: int) -> Sequence[TranscriptEntry]:
            span = (
                codec.transcript_key(ordinal, transcript, after + 1),
                codec.transcript_key(ordinal, transcript, codec.MAX_NUMBER),
            )
            # A negative limit is none.
            rows = connection.execute(_TRANSCRIPT, (*span, -1 if limit is None else limit))
            return codec.decode_messages([data for (data,) in rows])

        return await self._read(session_id, query)

    async def _read(self, session_id: str, query: Callable[[sqlite3.Connection, int], T]) -> T:
        """Run a query with the session's ordinal."""
        return await self._reader.run(lambda connection: query(connection, ordinal_of(connection, session_id)))


class SqliteSessions(_Repository):
    """Implements `SessionRepository`."""

    async def create(self, session_id: str, *, owner: str, at: int, model: str = "", title: str = "") -> None:
        """Implement `SessionRepository.create`."""
        given = codec.well_formed(title)
        await self._writer.write(
            lambda transaction: transaction.create_session(session_id, owner, at, model=model, title=given)
        )

    async def get(self, session_id: str, *, owner: str) -> Session:
        """Implement `SessionRepository.get`."""
        rows = await self._rows(f"{_LISTED} WHERE id = ? AND owner = ?", session_id, owner)
        if not rows:
            raise NotFound("no such session")
        return _listed(rows[0]).session

    async def get_any(self, session_id: str) -> Session:
        """Implement `SessionRepository.get_any`."""
        rows = await self._rows(f"{_LISTED} WHERE id = ?", session_id)
        if not rows:
            raise NotFound("no such session")
        return _listed(rows[0]).session

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """Implement `SessionRepository.page`."""
        # One session more than the limit tells whether there is a next page.
        if cursor is None:
            rows = await self._rows(_FIRST_PAGE, owner, limit + 1)
        else:
            rows = await self._rows(_NEXT_PAGE, owner, *session_summary.decode_cursor(cursor), limit + 1)
        return session_summary.page_of([_listed(row) for row in rows], limit)

    async def page_all(self, *, limit: int, cursor: str | None) -> SessionPage:
        """Implement `SessionRepository.page_all`."""
        _, before = session_summary.decode_cursor(cursor or session_summary.FIRST_CURSOR)
        rows = await self._rows(_ALL_PAGE, before, limit + 1)
        return session_summary.page_of([_listed(row) for row in rows], limit)

    async def assign_unowned(self, owner: str) -> int:
        """Implement `SessionRepository.assign_unowned`."""
        return await self._writer.write(lambda transaction: transaction.assign_unowned(owner))

    async def count(self, *, owner: str, up_to: int, running_only: bool = False) -> int:
        """Implement `SessionRepository.count`."""
        rows = await self._rows(_COUNT_RUNNING if running_only else _COUNT, owner, up_to)
        return int(rows[0][0])

    async def list_active(self) -> Mapping[str, str]:
        """Implement `SessionRepository.list_active`."""
        return dict(await self._rows("SELECT id, owner FROM sessions WHERE status = 'running' ORDER BY ordinal"))

    async def list_ids(self) -> Sequence[str]:
        """Implement `SessionRepository.list_ids`."""
        return [row[0] for row in await self._rows("SELECT id FROM sessions")]

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """Implement `SessionRepository.last_event_numbers`."""
        return dict(await self._rows(_LAST_EVENTS, orjson.dumps(list(session_ids)).decode()))

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        """Implement `SessionRepository.mark_delivered`."""
        return await self._writer.write(lambda transaction: transaction.mark_delivered(session_id, number))

    async def set_pinned(self, session_id: str, *, owner: str, is_pinned: bool) -> None:
        """Implement `SessionRepository.set_pinned`."""
        await self._writer.write(lambda transaction: transaction.set_pinned(session_id, owner, is_pinned=is_pinned))

    async def delete(self, session_id: str, *, owner: str) -> None:
        """Implement `SessionRepository.delete`."""
        if await self._writer.write(lambda transaction: transaction.delete_session(session_id, owner)):
            await self.delete_rows()

    async def delete_rows(self) -> None:
        """Delete the rows of deleted sessions, a limited number in each transaction.

        The next deletion or the next start continues what a crash, a full disk or a cancelled caller left undone.
        """
        with suppress(StoreUnavailable):
            while await self._writer.write(lambda transaction: transaction.delete_rows()):
                pass

    async def check(self) -> str | None:
        """Implement `SessionRepository.check`. Write only if the last transaction failed."""
        try:
            await self._rows("SELECT 1 FROM sessions LIMIT 1")
            if self._writer.last_failure is not None:
                await self._writer.write(lambda transaction: transaction.test_writing())
        except StoreUnavailable as error:
            return str(error)
        return None


class SqliteScreenshots(_Repository):
    """Implements `ScreenshotRepository`."""

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Implement `ScreenshotRepository.put`."""
        await self._writer.write(lambda transaction: transaction.put_screenshot(session_id, screenshot_id, jpeg))

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """Implement `ScreenshotRepository.get`."""
        rows = await self._rows(_SCREENSHOT, session_id, screenshot_id)
        if not rows:
            raise NotFound("no such screenshot in this session")
        return bytes(rows[0][0])

    async def list_ids(self, session_id: str) -> Sequence[str]:
        """Implement `ScreenshotRepository.list_ids`."""
        return [row[0] for row in await self._rows(_SCREENSHOT_IDS, session_id)]


class SqliteTickets(_Repository):
    """Implements `TicketRepository`. One transaction at a time writes, so a ticket is redeemed once."""

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """Implement `TicketRepository.put`."""
        await self._writer.write(lambda transaction: transaction.put_ticket(digest, ticket, at))

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        """Implement `TicketRepository.redeem`."""
        return await self._writer.write(lambda transaction: transaction.redeem_ticket(digest, session_id, at))


class SqliteAuditLog(_Repository):
    """Implements `AuditLog`. Triggers of the database refuse every other change."""

    async def append(self, entry: AuditEntry) -> AuditRecord:
        """Implement `AuditLog.append`."""
        return await self._writer.write(lambda transaction: transaction.append_audit(entry))

    async def read(self, *, after: int, limit: int, session_id: str | None = None) -> Sequence[AuditRecord]:
        """Implement `AuditLog.read`."""
        if session_id is None:
            rows = await self._rows(_AUDIT, after, limit)
        else:
            rows = await self._rows(_AUDIT_OF_SESSION, codec.well_formed(session_id), after, limit)
        return [audit_record(*row) for row in rows]


def _listed(row: _Row) -> session_summary.ListedSession:
    return session_summary.listed_session(row[0], row[1:])
