"""The sessions over SQLite."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress

import orjson

from app.domain.errors import NotFound, StoreUnavailable
from app.domain.models.message import Usage
from app.domain.models.session import Session, SessionPage, SessionStatus
from app.infrastructure.persistence.listing import decode_cursor, encode_cursor
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.ledger import Ledger
from app.infrastructure.persistence.sqlite.writer import Writer, Written

_COLUMNS = "id, owner, title, status, latest_message, latest_message_at, unread, created_at, head, touched, ordinal"
_Row = tuple[str, str, str, SessionStatus, str, int | None, int, int, int, int, int]
"""The columns' types; the schema's STRICT tables hold them to it."""

_ONE = f"SELECT {_COLUMNS} FROM sessions WHERE id = ? AND owner = ?"  # noqa: S608
_PAGE = f"SELECT {_COLUMNS} FROM sessions WHERE owner = ? ORDER BY touched DESC, ordinal DESC LIMIT ?"  # noqa: S608
_NEXT_PAGE = (
    f"SELECT {_COLUMNS} FROM sessions WHERE owner = ? AND (touched, ordinal) < (?, ?)"  # noqa: S608
    " ORDER BY touched DESC, ordinal DESC LIMIT ?"
)
_USAGE = "SELECT prompt_tokens, cached_tokens, completion_tokens, calls FROM sessions WHERE id = ?"

_HEADS = "SELECT id, head FROM sessions WHERE id IN (SELECT value FROM json_each(?))"


class SqliteSessions:
    """A `SessionRepository` (see there)."""

    def __init__(self, reader: Database, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def create(self, session_id: str, *, owner: str, at: int) -> None:
        """See `SessionRepository.create`.

        Raises:
            Conflict: there is a session of this id.
        """

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[None]:
            return Written(ledger.create(connection, session_id, owner, at))

        await self._writer.write(work)

    async def get(self, session_id: str, *, owner: str) -> Session:
        """See `SessionRepository.get`."""
        row = await self._reader.run(lambda connection: connection.execute(_ONE, (session_id, owner)).fetchone())
        if row is None:
            raise NotFound("no such session")
        return _session(row)

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """See `SessionRepository.page`."""
        place = None if cursor is None else decode_cursor(cursor)
        # One more than asked for tells whether there is a next page.
        query, values = (_PAGE, (owner, limit + 1)) if place is None else (_NEXT_PAGE, (owner, *place, limit + 1))
        rows = await self._reader.run(lambda connection: connection.execute(query, values).fetchall())
        shown = rows[:limit]
        more = len(rows) > limit and bool(shown)
        return SessionPage(
            sessions=tuple(map(_session, shown)),
            next_cursor=encode_cursor(*shown[-1][-2:]) if more else None,
        )

    async def list_active(self) -> Sequence[str]:
        """See `SessionRepository.list_active`."""
        query = "SELECT id FROM sessions WHERE status = 'active' ORDER BY ordinal"
        rows = await self._reader.run(lambda connection: connection.execute(query).fetchall())
        return [session_id for (session_id,) in rows]

    async def list_ids(self) -> Sequence[str]:
        """See `SessionRepository.list_ids`."""
        rows = await self._reader.run(lambda connection: connection.execute("SELECT id FROM sessions").fetchall())
        return [session_id for (session_id,) in rows]

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """See `SessionRepository.last_event_numbers`."""
        asked = orjson.dumps(list(session_ids)).decode()
        rows = await self._reader.run(lambda connection: connection.execute(_HEADS, (asked,)).fetchall())
        return dict(rows)

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        """See `SessionRepository.mark_delivered`."""

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[bool]:
            return Written(ledger.mark_delivered(connection, session_id, number))

        return await self._writer.write(work)

    async def usage(self, session_id: str) -> Usage:
        """See `SessionRepository.usage`."""
        row = await self._reader.run(lambda connection: connection.execute(_USAGE, (session_id,)).fetchone())
        if row is None:
            raise NotFound("no such session")
        return Usage(prompt_tokens=row[0], cached_tokens=row[1], completion_tokens=row[2], calls=row[3])

    async def delete(self, session_id: str, *, owner: str) -> None:
        """See `SessionRepository.delete`."""

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[bool]:
            return Written(ledger.delete(connection, session_id, owner))

        if await self._writer.write(work):
            await self.clear_away()

    async def clear_away(self) -> None:
        """Remove, a part at a time, what deleted sessions left behind.

        What a crash, a full disk or a cancelled caller leaves undone is done at the next delete or start.
        """
        with suppress(StoreUnavailable):
            while await self._writer.write(_clear_away):
                pass

    async def check(self) -> str | None:
        """See `SessionRepository.check`. Writes only while the last transaction failed, to see whether that is over."""
        try:
            await self._reader.run(lambda connection: connection.execute("SELECT 1 FROM sessions LIMIT 1").fetchone())
            if self._writer.trouble is not None:
                await self._writer.write(_probe)
        except StoreUnavailable as error:
            return str(error)
        return None


def _clear_away(ledger: Ledger, connection: sqlite3.Connection) -> Written[bool]:
    return Written(ledger.clear_away(connection))


def _probe(ledger: Ledger, connection: sqlite3.Connection) -> Written[None]:
    return Written(ledger.probe(connection))


def _session(row: _Row) -> Session:
    return Session(
        id=row[0],
        owner=row[1],
        title=row[2],
        status=row[3],
        latest_message=row[4],
        latest_message_at=row[5],
        unread_count=row[6],
        created_at=row[7],
        last_event_number=row[8],
    )
