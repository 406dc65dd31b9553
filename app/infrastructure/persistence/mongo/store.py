"""The MongoDB store: its client, its background work and the small repositories."""

from types import TracebackType

from app.domain.errors import NotFound, StoreUnavailable
from app.domain.repositories.tickets import MAX_TICKETS, Ticket, too_many_tickets
from app.infrastructure.persistence.codec import well_formed
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.client import CLIENT_ERRORS, ClientName, Document, MongoDatabase
from app.infrastructure.persistence.mongo.deletion import SessionDeleter
from app.infrastructure.persistence.mongo.event_log import MongoEventLog
from app.infrastructure.persistence.mongo.leases import MongoLeases
from app.infrastructure.persistence.mongo.schema import prepare
from app.infrastructure.persistence.mongo.session_writer import SessionCommitter
from app.infrastructure.persistence.mongo.sessions import MongoSessions
from app.infrastructure.persistence.mongo.write_queue import SessionWriteQueue
from app.infrastructure.persistence.session_update import EncodeEvent
from app.infrastructure.persistence.write_requests import OnCommitted


class MongoStore:
    """A database of a MongoDB replica set, for any number of processes: `async with MongoStore(...) as store`."""

    def __init__(
        self, url: str, database: str, *, encode: EncodeEvent, on_committed: OnCommitted, client: ClientName = "motor"
    ) -> None:
        """Make the client, inside a running event loop; `open` connects it.

        Args:
            url: Value of MONGODB_URL.
            database: Value of MONGODB_DATABASE.
            encode: Encoder of events.
            on_committed: Callback for every event that this process stores.
            client: Client library; both behave alike.

        Raises:
            StoreUnavailable: The URL or the name of the database is invalid.
        """
        self._database = MongoDatabase(url, database, client, on_lost=lambda: self._availability.mark_lost())
        self._availability = StoreAvailability(self._database, on_unavailable=self._refuse_pending)
        committer = SessionCommitter(self._database, self._availability, encode)
        self._queue = SessionWriteQueue(self._availability, committer, on_committed)
        self._deleter = SessionDeleter(self._database, self._availability)
        self.event_log = MongoEventLog(self._database, self._availability, self._queue)
        self.sessions = MongoSessions(self._database, self._availability, self._queue, self._deleter)
        self.screenshots = MongoScreenshots(self._database, self._availability)
        self.tickets = MongoTickets(self._database, self._availability)
        self.leases = MongoLeases(self._database, self._availability)
        self.installation = ""
        """Random id of the database, which marks what belongs to it elsewhere. Set by `open`."""

    async def open(self) -> None:
        """Connect, and create the missing collections and indexes. A store is opened once.

        Raises:
            StoreUnavailable: No server answers, it refuses the login, it is no replica set, or the database has another
                version of the schema.
        """
        try:
            self.installation = await prepare(self._database)
        except CLIENT_ERRORS as error:
            reason = self._database.explain(error).reason  # a closed client cannot explain any more
            await self._database.close()
            raise StoreUnavailable(f"MONGODB_URL: the store cannot be opened: {reason}") from error
        except BaseException:
            await self._database.close()
            raise
        self._availability.start()
        self._deleter.start()

    async def close(self) -> None:
        """Write what is waiting and close the connections. End runs and streams before."""
        await self._queue.close()
        await self._deleter.close()
        await self._availability.close()
        await self._database.close()

    async def __aenter__(self) -> "MongoStore":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _refuse_pending(self, error: StoreUnavailable) -> None:
        self._queue.refuse_pending(error)


class MongoScreenshots:
    """Implements `ScreenshotRepository`. Screenshots stored during a deletion are deleted with the other rows."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability) -> None:
        self._database = database
        self._availability = availability

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Implement `ScreenshotRepository.put`."""
        ordinal = await _find_ordinal(self._database, self._availability, session_id)
        if ordinal is None:
            raise NotFound("no such session")
        screenshot: Document = {"_id": {"s": ordinal, "k": well_formed(screenshot_id)}, "data": jpeg}
        await self._availability.write(lambda: self._database.screenshots.insert_one(screenshot))

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """Implement `ScreenshotRepository.get`."""
        ordinal = await _find_ordinal(self._database, self._availability, session_id)
        query: Document = {"_id": {"s": ordinal, "k": well_formed(screenshot_id)}}
        found = await self._availability.read(lambda: self._database.screenshots.find_one(query))
        if ordinal is None or found is None:
            raise NotFound("no such screenshot in this session")
        return bytes(found["data"])


class MongoTickets:
    """Implements `TicketRepository`. A ticket is redeemed by deleting it, which one process can do."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability) -> None:
        self._database = database
        self._availability = availability

    async def put(self, digest: str, ticket: Ticket, *, at: float) -> None:
        """Implement `TicketRepository.put`. Tickets stored during a deletion are deleted with the other rows."""
        ordinal = await _find_ordinal(self._database, self._availability, ticket.session_id)
        if ordinal is None:
            raise NotFound("no such session")
        tickets, availability = self._database.tickets, self._availability
        query: Document = {"session": ordinal, "expires_at": {"$gt": at}}
        order = [("expires_at", 1)]
        unused = await availability.read(
            lambda: tickets.find(query, {"expires_at": 1}, sort=order, limit=MAX_TICKETS).to_list(None)
        )
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
        ordinal = await _find_ordinal(self._database, self._availability, session_id)
        if ordinal is None:
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


async def _find_ordinal(database: MongoDatabase, availability: StoreAvailability, session_id: str) -> int | None:
    """Return the ordinal of a session; None if the session does not exist."""
    query = {"_id": well_formed(session_id)}
    found = await availability.read(lambda: database.sessions.find_one(query, {"ordinal": 1}))
    return None if found is None else int(found["ordinal"])
