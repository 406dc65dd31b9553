"""The tickets over MongoDB."""

from app.domain.errors import NotFound
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from app.infrastructure.persistence.listing import well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.ledger import Ledger


class MongoTickets:
    """A `TicketRepository` (see there). A ticket is taken by removing it, which only one can."""

    def __init__(self, gate: Gate, ledger: Ledger) -> None:
        self._gate = gate
        self._ledger = ledger

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """See `TicketRepository.put`. What comes behind a deletion opens nothing and is cleared away with the rest."""
        ordinal = await self._ledger.ordinal(ticket.session_id)
        if ordinal is None:
            raise NotFound("no such session")
        tickets = self._ledger.tables.tickets
        query: Document = {"session": ordinal, "expires_at": {"$gt": at}}
        waiting = await self._gate.read(
            lambda: tickets.find(query, {"expires_at": 1}, sort=[("expires_at", 1)], limit=MAX_TICKETS).to_list(None)
        )
        if len(waiting) >= MAX_TICKETS:
            raise too_many_tickets(waiting[0]["expires_at"] - at)
        row: Document = {
            "_id": digest,
            "session": ordinal,
            "owner": well_formed(ticket.owner),
            "view_only": ticket.view_only,
            "expires_at": ticket.expires_at,
        }
        await self._gate.unless_closed(self._gate.write(lambda: tickets.insert_one(row)))
        await self._gate.unless_closed(self._gate.write(lambda: tickets.delete_many({"expires_at": {"$lte": at}})))

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        """See `TicketRepository.redeem`."""
        ordinal = await self._ledger.ordinal(session_id)
        if ordinal is None:
            return None
        query: Document = {"_id": well_formed(digest), "session": ordinal, "expires_at": {"$gt": at}}
        taking = self._gate.write(lambda: self._ledger.tables.tickets.find_one_and_delete(query))
        found = await self._gate.unless_closed(taking)
        if found is None:
            return None
        return Ticket(
            session_id=session_id,
            owner=found["owner"],
            view_only=found["view_only"],
            expires_at=found["expires_at"],
        )
