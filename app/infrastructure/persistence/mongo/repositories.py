"""The base of MongoDB's repositories, and the small ones: screenshots, tickets, and the audit log."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from app.domain.errors import NotFound, StoreUnavailable
from app.domain.models.audit import AuditEntry, AuditRecord, chain
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from app.infrastructure.persistence.codec import well_formed
from app.infrastructure.persistence.group_commit import GroupCommitQueue, WrittenBatch
from app.infrastructure.persistence.mongo.availability import StoreAvailability, store_unavailable
from app.infrastructure.persistence.mongo.client import Collection, Document, MongoDatabase, insert_until_duplicate

_MAX_BATCH = 256
"""Maximum number of records in one write, so that the first of them does not wait long."""

_CONFLICT_SECONDS = 5.0
"""Maximum seconds to repeat a write because other processes add records."""

_MAX_PAUSE_SECONDS = 0.02
"""Maximum seconds to wait before a write is repeated."""

_NEWEST = [("_id", -1)]
_BY_NUMBER = [("_id", 1)]


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

    async def list_ids(self, session_id: str) -> Sequence[str]:
        """Implement `ScreenshotRepository.list_ids`."""
        ordinal = await self._find_ordinal(session_id)
        query: Document = {"_id": {"$gte": {"s": ordinal}, "$lt": {"s": ordinal + 1}}}
        return [row["_id"]["k"] for row in await self._find(self._database.screenshots, query, ("_id",))]


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


class _AppendQueue(GroupCommitQueue[AuditEntry]):
    """The records that this process adds. Several processes may add at once: one of them gets the next number."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability) -> None:
        super().__init__(_MAX_BATCH, lambda _session_id, _events: None)
        self._database = database
        self._availability = availability
        self._head: AuditRecord | None = None
        """The newest record of this process, if it may be the newest of all."""

    async def _write(self, requests: Sequence[AuditEntry]) -> WrittenBatch:
        deadline = time.monotonic() + _CONFLICT_SECONDS
        while True:
            head, self._head = self._head, None
            records = chain(requests, head or await self._newest())
            documents = [_document(record) for record in records]
            count = await self._availability.write(lambda d=documents: insert_until_duplicate(self._database.audit, d))
            if count:
                # The records that were not stored stay in the queue, and are chained again.
                self._head = records[count - 1]
                return WrittenBatch(records[:count], ())
            if time.monotonic() > deadline:
                raise store_unavailable("too many processes write to the audit log at once")
            await asyncio.sleep(random.uniform(0, _MAX_PAUSE_SECONDS))  # noqa: S311

    async def _newest(self) -> AuditRecord | None:
        newest = await self._availability.write(lambda: self._database.audit.find_one({}, sort=_NEWEST))
        return None if newest is None else _record(newest)


class MongoAuditLog(MongoRepository):
    """Implements `AuditLog`. The `_id` of a document is the number of its record, so a number is given once."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability) -> None:
        super().__init__(database, availability)
        self._queue = _AppendQueue(database, availability)

    async def append(self, entry: AuditEntry) -> AuditRecord:
        """Implement `AuditLog.append`."""
        self._availability.require()  # at once: the records before this one may wait for the server
        return await self._availability.wait_while_available(self._queue.put(entry))

    async def read(self, *, after: int, limit: int, session_id: str | None = None) -> Sequence[AuditRecord]:
        """Implement `AuditLog.read`."""
        query: Document = {"_id": {"$gt": after}}
        if session_id is not None:
            query["session"] = {"$eq": well_formed(session_id), "$gt": ""}
        return [_record(row) for row in await self._find(self._database.audit, query, sort=_BY_NUMBER, limit=limit)]

    def refuse_pending(self, failure: StoreUnavailable) -> None:
        """Refuse every record that is not being written."""
        self._queue.refuse_pending(failure)

    async def close(self) -> None:
        """Write what is waiting, unless the store is unavailable."""
        if not self._queue.is_idle:
            with suppress(StoreUnavailable):
                await self._availability.wait_while_available(self._queue.wait_until_idle())


def _document(record: AuditRecord) -> Document:
    return {"_id": record.number, "session": record.session_id, "data": record.data, "hash": record.hash}


def _record(row: Document) -> AuditRecord:
    return AuditRecord(number=row["_id"], session_id=row["session"], data=bytes(row["data"]), hash=row["hash"])
