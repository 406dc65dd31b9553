"""The event_log over SQLite."""

import sqlite3
from collections.abc import Sequence

import orjson

from app.domain.errors import NotFound
from app.domain.models.event import EventRecord
from app.domain.models.message import Message
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.infrastructure.persistence.codec import decode_messages, decode_run
from app.infrastructure.persistence.rows import LAST_NUMBER, USER, event_key, transcript_key
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.ledger import Ledger
from app.infrastructure.persistence.sqlite.writer import Writer, Written

_NUMBER = f"key & {LAST_NUMBER}"
_READ = f"SELECT {_NUMBER}, type, data FROM events WHERE key > ? AND key <= ? ORDER BY key LIMIT ?"  # noqa: S608
_WORDS = f"SELECT {_NUMBER}, data FROM events WHERE speaker = ? AND key > ? AND key <= ? ORDER BY key"  # noqa: S608


class SqliteEventLog:
    """A `EventLog` (see there). Writes go through the one writer, reads through a connection of their own."""

    def __init__(self, reader: Database, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def commit(self, session_id: str, change: Commit) -> Sequence[EventRecord]:
        """See `EventLog.commit`."""

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[Sequence[EventRecord]]:
            records = ledger.commit(connection, session_id, change)
            return Written(records, session_id, records)

        return await self._writer.write(work)

    async def append_user_message(self, session_id: str, content: str, *, at: int, key: str | None) -> StoredMessage:
        """See `EventLog.append_user_message`."""

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[StoredMessage]:
            receipt, records = ledger.receive(connection, session_id, content, at, key)
            return Written(receipt, session_id, records)

        return await self._writer.write(work)

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `EventLog.read`."""

        def work(connection: sqlite3.Connection) -> Sequence[EventRecord]:
            return _events(connection, _ordinal(connection, session_id), after, limit)

        return await self._reader.run(work)

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """See `EventLog.unread_messages`."""

        def work(connection: sqlite3.Connection) -> Sequence[UnreadMessage]:
            ordinal = _ordinal(connection, session_id)
            span = (event_key(ordinal, after), event_key(ordinal, LAST_NUMBER))
            rows = connection.execute(_WORDS, (USER, *span))
            return [UnreadMessage(number=number, content=orjson.loads(data)["content"]) for number, data in rows]

        return await self._reader.run(work)

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """See `EventLog.load_checkpoint`."""

        def work(connection: sqlite3.Connection) -> Checkpoint:
            ordinal = _ordinal(connection, session_id)
            row = connection.execute("SELECT state FROM runs WHERE session = ?", (ordinal,)).fetchone()
            return Checkpoint() if row is None else decode_run(row[0])

        return await self._reader.run(work)

    async def load_transcript(self, session_id: str, thread: TranscriptName) -> Sequence[Message]:
        """See `EventLog.load_transcript`."""

        def work(connection: sqlite3.Connection) -> Sequence[Message]:
            ordinal = _ordinal(connection, session_id)
            span = (transcript_key(ordinal, thread, 0), transcript_key(ordinal, thread, LAST_NUMBER))
            rows = connection.execute("SELECT data FROM transcripts WHERE key BETWEEN ? AND ? ORDER BY key", span)
            return decode_messages([data for (data,) in rows])

        return await self._reader.run(work)


def _ordinal(connection: sqlite3.Connection, session_id: str) -> int:
    row = connection.execute("SELECT ordinal FROM sessions WHERE id = ?", (session_id,)).fetchone()
    if row is None:
        raise NotFound("no such session")
    return int(row[0])


def _events(connection: sqlite3.Connection, ordinal: int, after: int, limit: int) -> list[EventRecord]:
    span = (event_key(ordinal, after), event_key(ordinal, LAST_NUMBER))
    return list(map(EventRecord._make, connection.execute(_READ, (*span, limit)).fetchall()))
