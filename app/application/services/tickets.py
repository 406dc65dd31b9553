"""Use cases: issue and redeem tickets, for browsers that cannot send a header with a WebSocket request."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from app.application.services.audit import AuditTrail
from app.domain.errors import Unauthorized
from app.domain.repositories.sessions import SessionRepository
from app.domain.repositories.tickets import Ticket, TicketRepository

LIFETIME_SECONDS = 30.0
"""Time in seconds within which a ticket must be redeemed."""

TICKET_BYTES = 24
"""Number of random bytes in a ticket. A ticket cannot be guessed."""

_MAX_TICKET_LENGTH = 64
"""Maximum length of a redeemed ticket in characters, twice the length of a real one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTicket:
    """A ticket as its holder receives it. The store only keeps a digest of it."""

    ticket: str
    expires_at: float
    """Seconds since the epoch, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketService:
    """Issue and redeem tickets. All processes that share a store redeem each other's tickets."""

    sessions: SessionRepository
    tickets: TicketRepository
    audit: AuditTrail
    now: Callable[[], float] = time.time

    async def issue(self, session_id: str, *, owner: str, view_only: bool) -> NewTicket:
        """Issue a ticket that opens the owner's session once within `LIFETIME_SECONDS`.

        Raises:
            NotFound: The session does not exist.
            LimitReached: Too many tickets of the session have not been redeemed yet.
        """
        await self.sessions.get(session_id, owner=owner)
        ticket = secrets.token_urlsafe(TICKET_BYTES)
        at = self.now()
        expires_at = at + LIFETIME_SECONDS
        stored = Ticket(session_id=session_id, owner=owner, view_only=view_only, expires_at=expires_at)
        async with self.audit.recording("ticket.issue", owner=owner, session_id=session_id, view_only=view_only):
            await self.tickets.put(_digest(ticket), stored, at=at)
        return NewTicket(ticket=ticket, expires_at=expires_at)

    async def redeem(self, ticket: str, *, session_id: str) -> Ticket:
        """Use up the ticket and return what it stands for.

        Raises:
            Unauthorized: The ticket was never issued, was used before, has expired, or is for another session. In
                the last case it is not used up.
            StoreUnavailable: The ticket may be used up, and opens nothing.
        """
        found = None
        if 0 < len(ticket) <= _MAX_TICKET_LENGTH:
            found = await self.tickets.redeem(_digest(ticket), session_id=session_id, at=self.now())
        if found is None:
            raise Unauthorized("the ticket opens nothing here: it is used up, expired, or for another session")
        await self.audit.record("ticket.redeem", owner=found.owner, session_id=session_id, view_only=found.view_only)
        return found


def _digest(ticket: str) -> str:
    return sha256(ticket.encode("utf-8", "replace")).hexdigest()
