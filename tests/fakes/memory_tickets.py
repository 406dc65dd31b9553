"""The `TicketRepository` of a `MemoryStore`."""

from app.domain.errors import NotFound
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from tests.fakes.memory_store import MemoryStore


class MemoryTickets:
    """Tickets in a dict. `kept` holds the unused ones by digest."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.kept: dict[str, Ticket] = {}

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        self._store.check_trouble()
        if not self._store.exists(ticket.session_id):
            raise NotFound("no such session")
        self._delete_expired(at)
        expiries = [each.expires_at for each in self.kept.values() if each.session_id == ticket.session_id]
        if len(expiries) >= MAX_TICKETS:
            raise too_many_tickets(min(expiries) - at)
        self.kept[digest] = ticket

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        self._store.check_trouble()
        self._delete_expired(at)
        ticket = self.kept.get(digest)
        if ticket is None or ticket.session_id != session_id:
            return None
        return self.kept.pop(digest)

    def _delete_expired(self, at: float) -> None:
        self.kept = {
            digest: ticket
            for digest, ticket in self.kept.items()
            if ticket.expires_at > at and self._store.exists(ticket.session_id)
        }
