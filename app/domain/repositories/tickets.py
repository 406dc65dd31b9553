"""Port of storage: tickets, each of which opens one session once, for a short time. They go when their session goes."""

from dataclasses import dataclass
from math import ceil
from typing import Protocol

from app.domain.errors import LimitReached

MAX_TICKETS = 100
"""Tickets of one session that may wait to be used at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a ticket stands for: a look at one session, on behalf of its owner."""

    session_id: str
    owner: str
    view_only: bool
    """Nothing that its holder types, points at or copies reaches the session's desktop."""
    expires_at: float
    """Seconds since the epoch, UTC; from then on it opens nothing."""


class TicketRepository(Protocol):
    """Tickets by a digest of what their holder shows, which itself is never stored.

    Raises (every method):
        StoreUnavailable: the store cannot be reached or is full; whether something was written is not known.
    """

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """Store a ticket under a digest that is new. Whatever has expired at the time `at` is cleared away.

        Raises:
            NotFound: the session does not exist (any more).
            LimitReached: `MAX_TICKETS` of the session wait already. Where many processes write at once, a few more
                than those may get in.
        """
        ...

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        """Take the ticket away and answer it. However many processes ask at the same instant, one gets it.

        None when there is none (any more), it is for another session, or it has expired at the time `at`: nothing is
        taken then.
        """
        ...


def too_many_tickets(seconds: float) -> LimitReached:
    """What a store refuses a ticket with; `seconds`: how long it takes until the first of those that wait expires."""
    reason = f"{MAX_TICKETS} tickets of this session wait to be used; use those, or let them expire"
    return LimitReached(reason, retry_after=max(1, ceil(seconds)))
