"""The tickets over SQLite."""

import sqlite3

from app.domain.errors import NotFound
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from app.infrastructure.persistence.sqlite.ledger import Ledger
from app.infrastructure.persistence.sqlite.writer import Writer, Written

_SESSION = "SELECT ordinal FROM sessions WHERE id = ?"
_CLEAR = "DELETE FROM tickets WHERE expires_at <= ?"
_COUNT = "SELECT count(*), min(expires_at) FROM tickets WHERE session = ? AND expires_at > ?"
_PUT = "INSERT INTO tickets (digest, session, owner, view_only, expires_at) VALUES (?, ?, ?, ?, ?)"
_REDEEM = """
DELETE FROM tickets
WHERE digest = ? AND session = (SELECT ordinal FROM sessions WHERE id = ?) AND expires_at > ?
RETURNING owner, view_only, expires_at
"""


class SqliteTickets:
    """A `TicketRepository` (see there). One transaction at a time writes, so that a ticket is taken once."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """See `TicketRepository.put`."""

        def work(_ledger: Ledger, connection: sqlite3.Connection) -> Written[None]:
            session = connection.execute(_SESSION, (ticket.session_id,)).fetchone()
            if session is None:
                raise NotFound("no such session")
            waiting, first = connection.execute(_COUNT, (session[0], at)).fetchone()
            if waiting >= MAX_TICKETS:
                raise too_many_tickets(first - at)
            connection.execute(_CLEAR, (at,))
            row = (digest, session[0], ticket.owner, ticket.view_only, ticket.expires_at)
            connection.execute(_PUT, row)
            return Written(None)

        await self._writer.write(work)

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        """See `TicketRepository.redeem`."""

        def work(_ledger: Ledger, connection: sqlite3.Connection) -> Written[Ticket | None]:
            row = connection.execute(_REDEEM, (digest, session_id, at)).fetchone()
            if row is None:
                return Written(None)
            owner, view_only, expires_at = row
            ticket = Ticket(session_id=session_id, owner=owner, view_only=bool(view_only), expires_at=expires_at)
            return Written(ticket)

        return await self._writer.write(work)
