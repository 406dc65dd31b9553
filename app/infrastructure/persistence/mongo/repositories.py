"""The base of MongoDB's repositories, and the two small ones: screenshots and tickets."""

from collections.abc import Sequence
from typing import Any

from app.domain.errors import NotFound
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from app.infrastructure.persistence.codec import well_formed
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.client import Collection, Document, MongoDatabase


class MongoRepository:
    """Collections, and queries that respect the store's availability."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability) -> None:
        self._database = database
        self._availability = availability

    async def _find(
        self, collection: Collection, query: Document, fields: Sequence[str] | None = None, **options: Any
    ) -> list[Document]:
        """Return the given fields of all matching documents. `options` are those of `Collection.find`."""
        return await self._availability.read(lambda: collection.find(query, fields, **options).to_list(None))

    async def _find_session(self, session_id: str, fields: Sequence[str], **condition: object) -> Document:
        """Return the given fields of a session.

        Raises:
            NotFound: The session does not exist, or does not meet `condition`.
        """
        query = {"_id": well_formed(session_id), **condition}
        found = await self._availability.read(lambda: self._database.sessions.find_one(query, fields))
        if found is None:
            raise NotFound("no such session")
        return found

    async def _find_ordinal(self, session_id: str) -> int:
        return (await self._find_session(session_id, ("ordinal",)))["ordinal"]


class MongoScreenshots(MongoRepository):
    """Implements `ScreenshotRepository`. Screenshots stored during a deletion are deleted with the other rows."""

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Implement `ScreenshotRepository.put`."""
        key = {"s": await self._find_ordinal(session_id), "k": well_formed(screenshot_id)}
        screenshot: Document = {"_id": key, "data": jpeg}
        await self._availability.write(lambda: self._database.screenshots.insert_one(screenshot))

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """Implement `ScreenshotRepository.get`."""
        key = {"s": await self._find_ordinal(session_id), "k": well_formed(screenshot_id)}
        rows = await self._find(self._database.screenshots, {"_id": key})
        if not rows:
            raise NotFound("no such screenshot in this session")
        return bytes(rows[0]["data"])


class MongoTickets(MongoRepository):
    """Implements `TicketRepository`. A ticket is redeemed by deleting it, which one process can do.

    Tickets stored during the deletion of their session are deleted with the other rows.
    """

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """Implement `TicketRepository.put`."""
        ordinal = await self._find_ordinal(ticket.session_id)
        tickets, availability = self._database.tickets, self._availability
        query: Document = {"session": ordinal, "expires_at": {"$gt": at}}
        unused = await self._find(tickets, query, ("expires_at",), sort=[("expires_at", 1)], limit=MAX_TICKETS)
        if len(unused) >= MAX_TICKETS:
            raise too_many_tickets(unused[0]["expires_at"] - at)
        row: Document = {
            "_id": digest,
            "session": ordinal,
            "owner": well_formed(ticket.owner),
            "view_only": ticket.view_only,
            "expires_at": ticket.expires_at,
        }
        expired: Document = {"expires_at": {"$lte": at}}
        await availability.wait_while_available(availability.write(lambda: tickets.insert_one(row)))
        await availability.wait_while_available(availability.write(lambda: tickets.delete_many(expired)))

    async def redeem(self, digest: str, *, session_id: str, at: float) -> Ticket | None:
        """Implement `TicketRepository.redeem`."""
        try:
            ordinal = await self._find_ordinal(session_id)
        except NotFound:
            return None
        query: Document = {"_id": well_formed(digest), "session": ordinal, "expires_at": {"$gt": at}}
        deleting = self._availability.write(lambda: self._database.tickets.find_one_and_delete(query))
        found = await self._availability.wait_while_available(deleting)
        if found is None:
            return None
        return Ticket(
            session_id=session_id,
            owner=found["owner"],
            view_only=found["view_only"],
            expires_at=found["expires_at"],
        )
