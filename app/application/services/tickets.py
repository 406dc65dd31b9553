"""Tickets: what opens a session for a browser that cannot send a header with its request."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from app.domain.errors import Unauthorized
from app.domain.repositories.sessions import SessionRepository
from app.domain.repositories.tickets import Ticket, TicketRepository

LIFETIME_SECONDS = 30.0

TICKET_BYTES = 24
"""Of randomness: nobody finds a ticket by guessing."""

_LONGEST = 64
"""Characters; ours have half as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedTicket:
    """A new ticket, the only time that it is seen whole."""

    ticket: str
    expires_at: float
    """Seconds since the epoch, UTC."""


class TicketService:
    """The use cases. Any process redeems what any other one issued, as long as both have the same store."""

    def __init__(
        self, *, sessions: SessionRepository, tickets: TicketRepository, now: Callable[[], float] = time.time
    ) -> None:
        """`now`: seconds since the epoch, UTC."""
        self._sessions = sessions
        self._tickets = tickets
        self._now = now

    async def issue(self, session_id: str, *, owner: str, view_only: bool) -> IssuedTicket:
        """A ticket for one look at the owner's session within the next `LIFETIME_SECONDS`.

        Raises:
            NotFound: no such session.
            LimitReached: too many tickets of the session wait to be used.
        """
        await self._sessions.get(session_id, owner=owner)
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        at = self._now()
        expires_at = at + LIFETIME_SECONDS
        stands_for = Ticket(session_id=session_id, owner=owner, view_only=view_only, expires_at=expires_at)
        await self._tickets.put(_digest(ticket), stands_for, at=at)
        return IssuedTicket(ticket=ticket, expires_at=expires_at)

    async def redeem(self, ticket: str, *, session_id: str) -> Ticket:
        """Use the ticket up for a look at the session.

        Raises:
            Unauthorized: it was never issued, is used up or expired, or is for another session, and then not used up.
        """
        found = None
        if 0 < len(ticket) <= _LONGEST:
            found = await self._tickets.redeem(_digest(ticket), session_id=session_id, at=self._now())
        if found is None:
            raise Unauthorized("the ticket opens nothing here: it is used up, expired, or for another session")
        return found


def _digest(ticket: str) -> str:
    """What the store knows a ticket by: whoever reads the store cannot use what they find."""
    return sha256(ticket.encode("utf-8", "replace")).hexdigest()
