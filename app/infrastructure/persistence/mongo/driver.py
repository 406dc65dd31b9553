"""The one module that knows the clients: Motor, or PyMongo's own asyncio client. Either is loaded when it is opened."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.collection import Collection, Document
from app.infrastructure.tls import tls_words

ClientName = Literal["motor", "pymongo"]

_SELECTION_SECONDS = 2.0
"""How long an operation looks for a primary: a driver's own retry, not an election."""

_OPERATION_SECONDS = 4.0
"""How long one operation may take with everything, well below the life of a lease."""

_HEARTBEAT_SECONDS = 2.0
"""How often the client looks at each server, and with the time for a connection until it knows that one hangs. A
member that was away and is elected is not seen before: as long as there seems to be a primary, nobody looks sooner."""

_CLOSE_SECONDS = 0.5
"""How long closing may take with what is said to a server in it."""

_CONNECTIONS = 20
"""At once, to a server: what waits for one of them waits no longer than an operation may take."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A client's error in our words. `lost`: no server that could be written answered; it did not merely take long."""

    words: str
    lost: bool = False


NOBODY = Failure("no server answers that can be written", lost=True)


class Driver:
    """One client, and what goes wrong with it. `open` before anything else.

    Every operation is bounded in time. Writes are answered when a majority of the servers has them on its disks, and
    reads see what a majority has.
    """

    def __init__(self, url: str, database: str, name: ClientName) -> None:
        self._url = url
        self._database = database
        self._name: ClientName = name
        self._client: Any = None
        self._tables: Any = None
        self.failures: tuple[type[Exception], ...] = ()
        """What an operation may raise, for `except`; `failure` puts it into words."""

    def open(self, on_lost: Callable[[], None]) -> None:
        """Make the client; it connects at its first operation.

        `on_lost`: called on the event loop when the client has just lost sight of every server that could be written,
        also when it sees another one already.

        Raises:
            StoreUnavailable: the address or the name of the database is none, or a file that the address names for TLS
                cannot be used.
        """
        from bson.errors import BSONError
        from pymongo.errors import PyMongoError
        from pymongo.read_concern import ReadConcern
        from pymongo.read_preferences import ReadPreference
        from pymongo.write_concern import WriteConcern

        self.failures = (PyMongoError, BSONError)
        maker: Any = _motor() if self._name == "motor" else _pymongo()
        try:
            self._client = maker(
                self._url,
                appname="anker",
                timeoutMS=int(_OPERATION_SECONDS * 1000),
                serverSelectionTimeoutMS=int(_SELECTION_SECONDS * 1000),
                connectTimeoutMS=int(_SELECTION_SECONDS * 1000),
                heartbeatFrequencyMS=int(_HEARTBEAT_SECONDS * 1000),
                maxPoolSize=_CONNECTIONS,
                retryWrites=True,
                retryReads=True,
                event_listeners=[_listener(asyncio.get_running_loop(), on_lost)],
            )
        except OSError as error:
            raise StoreUnavailable("MONGODB_URL: a file that it names for TLS cannot be used") from error
        except (PyMongoError, ValueError, TypeError) as error:
            # Not the client's own words: they may repeat a part of the address.
            raise StoreUnavailable(
                "MONGODB_URL: not an address of MongoDB: mongodb://user:password@host:port/?replicaSet=name,"
                " with %40 for a @ in the password and the like"
            ) from error
        try:
            self._tables = self._client.get_database(
                self._database,
                read_concern=ReadConcern("majority"),
                write_concern=WriteConcern("majority", j=True),
                read_preference=ReadPreference.PRIMARY,
            )
        except PyMongoError as error:
            raise StoreUnavailable("MONGODB_DATABASE: not a name for a database") from error

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            # It says good-bye to a server, and would look for one if none is there.
            with self.within(_CLOSE_SECONDS):
                # Motor's is a plain call that waits for the threads which watch the servers.
                closing: object = await asyncio.to_thread(self._client.close)
                if inspect.isawaitable(closing):
                    await closing

    def collection(self, name: str) -> Collection:
        """One of the store's collections."""
        return cast("Collection", self._tables[name])

    def within(self, seconds: float) -> AbstractContextManager[object]:
        """Operations begun inside it have `seconds` for all of them, instead of the usual bound for each."""
        import pymongo

        return pymongo.timeout(seconds)

    async def command(self, name: str) -> Document:
        """One of the server's commands without arguments."""
        return cast("Document", await self._tables.command(name))

    async def make_indexes(self, collection: str, indexes: Sequence[Document]) -> None:
        """Make those of `indexes` (each with `name` and `key`) that are missing; the collection too, if need be."""
        # By default one waits until every member has built it: with one of three away, a start would wait for ever.
        await self._tables.command(
            "createIndexes",
            collection,
            indexes=list(indexes),
            commitQuorum="majority",
            writeConcern={"w": "majority", "j": True},
        )

    def is_duplicate(self, error: Exception) -> bool:
        """Whether `error` only says that what was to be stored is there already."""
        from pymongo.errors import BulkWriteError, DuplicateKeyError

        if isinstance(error, BulkWriteError):
            details = cast("Document", error.details)
            codes = {fault.get("code") for fault in details.get("writeErrors", ())}
            return codes == {11000} and not details.get("writeConcernErrors")
        return isinstance(error, DuplicateKeyError)

    def failure(self, error: Exception) -> Failure:
        """`error` in words for whoever waits for the store: no address, no name of a server or a user."""
        from pymongo import errors

        match error:
            case errors.ServerSelectionTimeoutError():
                return self._nobody()
            case errors.NetworkTimeout() | errors.WaitQueueTimeoutError():
                return Failure("it does not answer in time")
            case errors.ConnectionFailure():
                return Failure("the connection broke", lost=True)
            case errors.OperationFailure():
                return Failure(_refusal(error.code), lost=error.code in _NO_PRIMARY | _NO_LOGIN)
            case errors.PyMongoError() if error.timeout:
                return Failure("it does not answer in time")
            case _:
                return Failure("the database refused")

    def _nobody(self) -> Failure:
        """Why the client sees no server: it says so of each of them, not in the error."""
        for server in self._client.topology_description.server_descriptions().values():
            if (words := tls_words(server.error)) is not None:
                return Failure(words, lost=True)
            if getattr(server.error, "code", None) in _REFUSALS:
                return Failure(_refusal(server.error.code), lost=True)
        return NOBODY


_NO_PRIMARY = {91, 189, 10107, 11600, 11602, 13435, 13436}
"""Shutting down, stepped down, not (yet) primary."""

_NO_LOGIN = {18, 8000}
"""After which the client takes the server for unknown, until it next looks by itself."""

_REFUSALS = {
    13: "the user of MONGODB_URL may not do this, or it names none",
    18: "the login in MONGODB_URL is refused",
    50: "it does not answer in time",
    8000: "the login in MONGODB_URL is refused",
    14031: "the disk is full",
    20: "it is no replica set",
}


def _refusal(code: int | None) -> str:
    if code in _NO_PRIMARY:
        return NOBODY.words
    return _REFUSALS.get(code or 0, "the database refused")


def _listener(loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> object:
    from pymongo.monitoring import TopologyClosedEvent, TopologyDescriptionChangedEvent, TopologyListener
    from pymongo.monitoring import TopologyOpenedEvent as Opened
    from pymongo.topology_description import TopologyDescription

    def writable(description: TopologyDescription) -> set[object]:
        servers = description.server_descriptions()
        return {address for address, server in servers.items() if server.is_writable}

    class Watch(TopologyListener):
        def opened(self, event: Opened) -> None:
            pass

        def description_changed(self, event: TopologyDescriptionChangedEvent) -> None:
            before, now = writable(event.previous_description), writable(event.new_description)
            if before and not before & now:
                with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                    loop.call_soon_threadsafe(on_lost)

        def closed(self, event: TopologyClosedEvent) -> None:
            pass

    return Watch()


def _motor() -> object:
    from motor.motor_asyncio import AsyncIOMotorClient

    return AsyncIOMotorClient


def _pymongo() -> object:
    from pymongo import AsyncMongoClient

    return AsyncMongoClient
