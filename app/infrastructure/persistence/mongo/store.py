"""The MongoDB store as a whole: its client, its gate, its background work."""

from types import TracebackType

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.draft import Encode
from app.infrastructure.persistence.mongo.driver import ClientName, Driver
from app.infrastructure.persistence.mongo.event_log import MongoEventLog
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.lanes import Lanes, OnCommitted
from app.infrastructure.persistence.mongo.leases import MongoLeases
from app.infrastructure.persistence.mongo.leaving import Leaving
from app.infrastructure.persistence.mongo.ledger import Ledger
from app.infrastructure.persistence.mongo.schema import prepare, tables_of
from app.infrastructure.persistence.mongo.screenshots import MongoScreenshots
from app.infrastructure.persistence.mongo.sessions import MongoSessions
from app.infrastructure.persistence.mongo.tickets import MongoTickets


class MongoStore:
    """A database of a MongoDB replica set, for any number of processes: `async with MongoStore(…) as store`.

    `encode` makes the JSON of an event; `on_committed` hears of every event that this process stored, on the event
    loop, in order. `client`: which of the two clients talks to the server; they do the same.
    """

    def __init__(
        self, url: str, database: str, *, encode: Encode, on_committed: OnCommitted, client: ClientName = "motor"
    ) -> None:
        self._driver = Driver(url, database, client)
        self._gate = Gate(self._driver, on_closed=self._refuse_waiting)
        self._ledger = Ledger(self._driver, self._gate, encode)
        self._lanes = Lanes(self._gate, self._ledger, on_committed)
        self._leaving = Leaving(self._driver, self._gate, self._ledger)
        self.event_log = MongoEventLog(self._gate, self._ledger, self._lanes)
        self.sessions = MongoSessions(self._driver, self._gate, self._ledger, self._lanes, self._leaving)
        self.screenshots = MongoScreenshots(self._gate, self._ledger)
        self.tickets = MongoTickets(self._gate, self._ledger)
        self.leases = MongoLeases(self._gate, self._ledger)
        self.installation = ""
        """A random word made with the database: what belongs to it elsewhere carries the word. Set by `open`."""

    async def open(self) -> None:
        """Connect, make the collections and indexes that are missing. Once in a store's life.

        Raises:
            StoreUnavailable: MONGODB_URL or MONGODB_DATABASE cannot be used, nobody answers there, the server is no
                replica set, or a newer program wrote the database.
        """
        try:
            self._driver.open(self._gate.lost)
            self._ledger.tables = tables_of(self._driver)
            self.installation = await prepare(self._driver, self._ledger.tables)
        except self._driver.failures as error:
            words = self._driver.failure(error).words  # a client that is closed no longer knows
            await self._driver.close()
            raise StoreUnavailable(f"MONGODB_URL: the store cannot be opened: {words}") from error
        except BaseException:
            await self._driver.close()
            raise
        self._gate.start()
        self._leaving.start()

    async def close(self) -> None:
        """Write what is waiting, close the connections. Runs and streams should have ended before."""
        await self._lanes.close()
        await self._leaving.close()
        await self._gate.close()
        await self._driver.close()

    async def __aenter__(self) -> "MongoStore":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _refuse_waiting(self, failure: StoreUnavailable) -> None:
        self._lanes.refuse_waiting(failure)
