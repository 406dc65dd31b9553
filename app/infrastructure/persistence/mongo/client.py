"""The client of MongoDB: Motor or PyMongo's asyncio client, with its options, its collections and its errors."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import pymongo
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, errors, monitoring
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.topology_description import TopologyDescription
from pymongo.write_concern import WriteConcern

from app.domain.errors import StoreUnavailable
from app.infrastructure.tls import explain_tls_failure

ClientName = Literal["motor", "pymongo"]

Document = dict[str, Any]
"""A document; `schema.py` lists the fields of each collection."""

Collection = AsyncCollection[Document]
"""A collection. Motor's collections have the same methods, so they are typed as PyMongo's."""

RawCollection = AsyncCollection[RawBSONDocument]

CLIENT_ERRORS = (errors.PyMongoError, BSONError)
"""Exceptions of an operation; `MongoDatabase.explain` says what they mean."""

_SELECTION_SECONDS = 2.0
"""Maximum seconds that an operation waits for a primary: enough for a retry of the client, not for an election."""

_OPERATION_SECONDS = 4.0
"""Maximum seconds of one operation, retries included; well below the duration of a lease."""

_HEARTBEAT_SECONDS = 2.0
"""Seconds between two checks of each server by the client. Nothing checks sooner while there seems to be a primary, so
this bounds how late the client notices a member that was away and is elected."""

_CLOSE_SECONDS = 0.5
"""Maximum seconds for closing, which includes messages to the servers."""

_MAX_CONNECTIONS = 20
"""Maximum number of connections to one server. Waiting for one counts as part of the operation."""

_NO_PRIMARY_CODES = {91, 189, 10107, 11600, 11602, 13435, 13436}
"""Error codes of a server that shuts down, stepped down, or is not primary yet."""

_LOGIN_CODES = {18, 8000}
"""Error codes of a refused login. The client then treats the server as unknown until its next check."""

_DUPLICATE_CODE = 11000
"""Error code of an insert whose document exists."""

_REASONS = {
    13: "the user of MONGODB_URL may not do this, or it names none",
    18: "the login in MONGODB_URL is refused",
    20: "it is no replica set",
    50: "it does not answer in time",
    8000: "the login in MONGODB_URL is refused",
    14031: "the disk is full",
}
"""Explanations of server error codes."""


@dataclass(frozen=True, slots=True)
class StoreFailure:
    """Why an operation failed, without the names of servers and users."""

    reason: str
    is_lost: bool = False
    """Whether no writable server was reached; False if a server was merely slow or refused the operation."""


NO_SERVER = StoreFailure("no server answers that can be written", is_lost=True)
TIMED_OUT = StoreFailure("it does not answer in time")


class MongoDatabase:
    """One database with its collections.

    Every operation has a time limit. A write returns when a majority of the servers has it on its disks, and a read
    returns what a majority has.
    """

    def __init__(self, url: str, name: str, client: ClientName, *, on_lost: Callable[[], None]) -> None:
        """Make the client, inside a running event loop. It connects at the first operation.

        Args:
            url: Value of MONGODB_URL.
            name: Value of MONGODB_DATABASE.
            client: Client library; both behave alike.
            on_lost: Callback on the event loop when the client loses sight of every writable server, even if it sees
                a new one at once.

        Raises:
            StoreUnavailable: The URL or the name is invalid, or a TLS file that the URL names cannot be used.
        """
        make: Any = AsyncIOMotorClient if client == "motor" else AsyncMongoClient
        try:
            self._client: AsyncMongoClient[Document] = make(
                url,
                appname="anker",
                timeoutMS=int(_OPERATION_SECONDS * 1000),
                serverSelectionTimeoutMS=int(_SELECTION_SECONDS * 1000),
                connectTimeoutMS=int(_SELECTION_SECONDS * 1000),
                heartbeatFrequencyMS=int(_HEARTBEAT_SECONDS * 1000),
                maxPoolSize=_MAX_CONNECTIONS,
                retryWrites=True,
                retryReads=True,
                event_listeners=[_PrimaryListener(asyncio.get_running_loop(), on_lost)],
            )
        except OSError as error:
            raise StoreUnavailable("MONGODB_URL: a file that it names for TLS cannot be used") from error
        except (errors.PyMongoError, ValueError, TypeError) as error:
            # The message of the client is not shown: it may repeat a part of the URL.
            raise StoreUnavailable(
                "MONGODB_URL: not an address of MongoDB: mongodb://user:password@host:port/?replicaSet=name,"
                " with %40 for a @ in the password and the like"
            ) from error
        try:
            self._database = self._client.get_database(
                name,
                read_concern=ReadConcern("majority"),
                write_concern=WriteConcern("majority", j=True),
                read_preference=ReadPreference.PRIMARY,
            )
        except errors.PyMongoError as error:
            raise StoreUnavailable("MONGODB_DATABASE: not a name for a database") from error
        self.sessions: Collection = self._database["sessions"]
        self.events: Collection = self._database["events"]
        self.transcripts: Collection = self._database["transcripts"]
        self.message_keys: Collection = self._database["message_keys"]
        self.screenshots: Collection = self._database["screenshots"]
        self.tickets: Collection = self._database["tickets"]
        self.daily_tokens: Collection = self._database["daily_tokens"]
        self.deletions: Collection = self._database["deletions"]
        self.metadata: Collection = self._database["metadata"]
        self.counters: Collection = self._database["counters"]
        self.audit: Collection = self._database["audit"]

    async def close(self) -> None:
        """Close every connection."""
        # The client takes leave of a server, and would wait for one if there is none.
        with pymongo.timeout(_CLOSE_SECONDS):
            # Motor's `close` blocks until its monitoring threads have ended; PyMongo's returns a coroutine.
            closing: object = await asyncio.to_thread(self._client.close)
            if inspect.isawaitable(closing):
                await closing

    async def hello(self) -> Document:
        """Return what the server says about itself and its replica set."""
        return await self._database.command("hello")

    async def collection_names(self) -> list[str]:
        """Return the names of all collections, also of those that this program does not know."""
        return sorted(await self._database.list_collection_names(filter={"type": "collection"}))

    def raw_collection(self, name: str) -> RawCollection:
        """Return a collection whose documents are read and written byte by byte as they are stored."""
        options: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
        return cast("RawCollection", self._database.get_collection(name, codec_options=options))

    def start_snapshot(self) -> AsyncClientSession:
        """Return a session whose reads all see the same moment. It needs PyMongo's client."""
        return self._client.start_session(snapshot=True)

    def explain(self, error: Exception) -> StoreFailure:
        """Return what an exception of `CLIENT_ERRORS` means."""
        match error:
            case errors.ServerSelectionTimeoutError():
                return self._explain_missing_server()
            case errors.NetworkTimeout() | errors.WaitQueueTimeoutError():
                return TIMED_OUT
            case errors.ConnectionFailure():
                return StoreFailure("the connection broke", is_lost=True)
            case errors.OperationFailure():
                return StoreFailure(_reason(error.code), is_lost=error.code in _NO_PRIMARY_CODES | _LOGIN_CODES)
            case errors.PyMongoError() if error.timeout:
                return TIMED_OUT
            case _:
                return StoreFailure("the database refused")

    def _explain_missing_server(self) -> StoreFailure:
        """Return why the client sees no server, which it keeps with each server and not in the exception."""
        for server in self._client.topology_description.server_descriptions().values():
            if (reason := explain_tls_failure(server.error)) is not None:
                return StoreFailure(reason, is_lost=True)
            if isinstance(server.error, errors.OperationFailure) and server.error.code in _REASONS:
                return StoreFailure(_reason(server.error.code), is_lost=True)
        return NO_SERVER


async def insert_missing(collection: Collection, documents: Sequence[Document]) -> bool:
    """Insert those documents that do not exist. Return whether all of them were missing."""
    return await _insert(collection, documents, ordered=False) == len(documents)


async def insert_until_duplicate(collection: Collection, documents: Sequence[Document]) -> int:
    """Insert documents in order up to the first one that exists. Return the number of inserted ones."""
    return await _insert(collection, documents, ordered=True)


async def _insert(collection: Collection, documents: Sequence[Document], *, ordered: bool) -> int:
    try:
        await collection.insert_many(documents, ordered=ordered)
    except errors.BulkWriteError as error:
        details = cast("Document", error.details)
        codes = {failure.get("code") for failure in details.get("writeErrors", ())}
        if codes != {_DUPLICATE_CODE} or details.get("writeConcernErrors"):
            raise
        return int(details["nInserted"])
    return len(documents)


async def aggregate(collection: Collection, pipeline: Sequence[Document]) -> list[Document]:
    """Return all results of an aggregation."""
    # Motor's method returns a cursor; PyMongo's returns a coroutine of one.
    cursor: Any = collection.aggregate(pipeline)
    if inspect.isawaitable(cursor):
        cursor = await cursor
    return await cursor.to_list(None)


def _reason(code: int | None) -> str:
    return NO_SERVER.reason if code in _NO_PRIMARY_CODES else _REASONS.get(code or 0, "the database refused")


class _PrimaryListener(monitoring.TopologyListener):
    """Reports when the client loses its primary. The client calls it on threads of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost

    def opened(self, event: monitoring.TopologyOpenedEvent) -> None:
        pass

    def description_changed(self, event: monitoring.TopologyDescriptionChangedEvent) -> None:
        before, now = _writable(event.previous_description), _writable(event.new_description)
        if before and not before & now:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._on_lost)

    def closed(self, event: monitoring.TopologyClosedEvent) -> None:
        pass


def _writable(description: TopologyDescription) -> set[object]:
    servers = description.server_descriptions()
    return {address for address, server in servers.items() if server.is_writable}
