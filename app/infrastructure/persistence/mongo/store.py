"""The MongoDB store: its client, its repositories and its background work."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.group_commit import OnCommitted
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.client import CLIENT_ERRORS, ClientName, MongoDatabase
from app.infrastructure.persistence.mongo.deletion import SessionDeleter
from app.infrastructure.persistence.mongo.event_log import MongoEventLog
from app.infrastructure.persistence.mongo.leases import MongoLeases
from app.infrastructure.persistence.mongo.repositories import MongoAuditLog, MongoScreenshots, MongoTickets
from app.infrastructure.persistence.mongo.schema import VERSION, prepare
from app.infrastructure.persistence.mongo.session_writer import SessionCommitter
from app.infrastructure.persistence.mongo.sessions import MongoSessions
from app.infrastructure.persistence.mongo.write_queue import SessionWriteQueue
from app.infrastructure.persistence.session_update import EncodeEvent


class MongoStore:
    """A database of a MongoDB replica set, for any number of processes: `async with MongoStore(...) as store`."""

    schema = f"MongoDB, version {VERSION}"
    """The schema that this program uses."""

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
        self.audit = MongoAuditLog(self._database, self._availability)
        self.installation = ""
        """Random id of the database, which marks what belongs to it elsewhere. Set by `open`."""
        self.signing_key = ""
        """Random secret of the database, which signs what its processes hand out. Set by `open`."""

    async def open(self) -> None:
        """Connect, and create the missing collections and indexes. A store is opened once.

        Raises:
            StoreUnavailable: No server answers, it refuses the login, it is no replica set, or the database has another
                version of the schema.
        """
        try:
            self.installation, self.signing_key = await prepare(self._database)
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
        await self.audit.close()
        await self._deleter.close()
        await self._availability.close()
        await self._database.close()

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator["MongoStore", None]:
        """Connect for reading only: create, migrate and delete nothing.

        Raises:
            StoreUnavailable: No server answers, or it refuses the login.
        """
        self._availability.start()
        try:
            yield self
        finally:
            await self._availability.close()
            await self._database.close()

    async def __aenter__(self) -> "MongoStore":
        await self.open()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    def _refuse_pending(self, error: StoreUnavailable) -> None:
        self._queue.refuse_pending(error)
        self.audit.refuse_pending(error)
