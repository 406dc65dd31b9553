"""Storage port: tickets. A ticket opens one session once, for a short time, and is deleted with its session."""

from dataclasses import dataclass
from math import ceil
from typing import Protocol

from app.domain.errors import LimitReached

MAX_TICKETS = 100
"""Maximum number of unused tickets of one session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Permission to view one session on behalf of its owner."""

    session_id: str
    owner: str
    view_only: bool
    """Whether the viewer's keyboard, pointer and clipboard input is discarded."""
    expires_at: float
    """Time from which the ticket is invalid, in seconds since the epoch, UTC."""


class TicketRepository(Protocol):
    """Tickets by the digest of their secret. The secret itself is never stored.

    Every method raises:
        StoreUnavailable: The store cannot be reached or is full. Whether a write was stored is not known.
    """

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """Store a ticket under a new digest, and delete all tickets that have expired at the time `at`.

        Raises:
            NotFound: The session does not exist, or does not exist any more.
            LimitReached: The session has `MAX_TICKETS` unused tickets. Processes that write at the same time may
                exceed this limit by a few.
        """
        ...

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        """Remove the ticket and return it. If many processes ask at the same time, one of them gets it.

        Return None and remove nothing if the ticket does not exist, belongs to another session, or has expired at the
        time `at`.
        """
        ...


def too_many_tickets(seconds: float) -> LimitReached:
    """Return the error for a session with too many tickets; the first of them expires in `seconds`."""
    reason = f"{MAX_TICKETS} tickets of this session wait to be used; use those, or let them expire"
    return LimitReached(reason, limit="tickets", retry_after=max(1, ceil(seconds)))
