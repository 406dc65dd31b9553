"""The stores under contract, each with what a test needs besides the ports."""

import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from app.domain.external.screenshots import ScreenshotRepository
from app.domain.models.event import EventRecord
from app.domain.repositories.audit import AuditLog
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.leases import LeaseRepository
from app.domain.repositories.sessions import SessionRepository
from app.domain.repositories.tickets import TicketRepository
from app.infrastructure.persistence.mongo.client import ClientName
from app.infrastructure.persistence.mongo.store import MongoStore
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event
from tests.fakes.memory_audit import MemoryAuditLog
from tests.fakes.memory_leases import MemoryLeases
from tests.fakes.memory_store import MemoryScreenshots, MemoryStore
from tests.fakes.memory_tickets import MemoryTickets
from tests.support.stores import Mongod, require_mongod

STORES = ("memory", "mongo", "sqlite")
CLIENTS: tuple[ClientName, ...] = ("motor", "pymongo")

T = TypeVar("T", "MemoryHarness", "SqliteHarness", "MongoHarness", "Harness")


class _Harness:
    """The ports of a store, and the events that it announced. A closed harness can be opened again."""

    event_log: EventLog
    sessions: SessionRepository
    screenshots: ScreenshotRepository
    tickets: TicketRepository
    audit: AuditLog

    def __init__(self) -> None:
        self.committed: list[tuple[str, Sequence[EventRecord]]] = []

    def on_committed(self, session_id: str, records: Sequence[EventRecord]) -> None:
        self.committed.append((session_id, records))

    async def open(self) -> None:
        """Open the store."""

    async def close(self) -> None:
        """Close the store."""


class MemoryHarness(_Harness):
    """The fake. Reopening it loses nothing."""

    def __init__(self) -> None:
        super().__init__()
        store = MemoryStore(on_committed=self.on_committed)
        self.event_log = self.sessions = store
        self.screenshots = MemoryScreenshots(store)
        self.tickets = MemoryTickets(store)
        self.audit = MemoryAuditLog(store)
        self.leases: LeaseRepository = MemoryLeases(store)


class SqliteHarness(_Harness):
    """The SQLite store, in a directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self._data_dir = data_dir

    async def open(self) -> None:
        self.store = SqliteStore(self._data_dir, encode=encode_event, on_committed=self.on_committed)
        await self.store.open()
        self.event_log, self.sessions = self.store.event_log, self.store.sessions
        self.screenshots, self.tickets, self.audit = self.store.screenshots, self.store.tickets, self.store.audit

    async def close(self) -> None:
        await self.store.close()


class MongoHarness(_Harness):
    """The MongoDB store, on a real server, in a database that lives as long as the test."""

    leases: LeaseRepository

    def __init__(self, mongod: Mongod, client: ClientName = "motor", database: str | None = None) -> None:
        super().__init__()
        self.mongod = mongod
        self.client: ClientName = client
        self.database = database or f"test_{secrets.token_hex(6)}"

    async def open(self) -> None:
        self.store = MongoStore(
            self.mongod.url, self.database, encode=encode_event, on_committed=self.on_committed, client=self.client
        )
        await self.store.open()
        self.event_log, self.sessions = self.store.event_log, self.store.sessions
        self.screenshots, self.tickets, self.audit = self.store.screenshots, self.store.tickets, self.store.audit
        self.leases = self.store.leases

    async def close(self) -> None:
        await self.store.close()

    def close_later(self, executor: ThreadPoolExecutor) -> None:
        """Let `close` leave the client of Motor to `executor`: closing it waits up to half a second for its threads."""
        database = self.store._database

        async def close_client() -> None:
            executor.submit(database._client.close)

        database.close = close_client


Harness = MemoryHarness | SqliteHarness | MongoHarness
LeasingHarness = MemoryHarness | MongoHarness


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Start one server for all tests that do not stop it."""
    require_mongod()
    server = Mongod(tmp_path_factory.mktemp("mongod"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def cleanup(mongod: Mongod) -> Iterator[ThreadPoolExecutor]:
    """Close clients and drop databases beside the tests that follow."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@asynccontextmanager
async def opened(harness: T) -> AsyncIterator[T]:
    """Open the harness and create session "s". Close it afterwards."""
    await harness.open()
    try:
        await harness.sessions.create("s", owner="me", at=100)
        yield harness
    finally:
        await harness.close()


@asynccontextmanager
async def opened_mongo(mongod: Mongod, cleanup: ThreadPoolExecutor) -> AsyncIterator[MongoHarness]:
    """Open a MongoDB harness like `opened`, and drop its database afterwards."""
    harness = MongoHarness(mongod)
    try:
        async with opened(harness):
            yield harness
            harness.close_later(cleanup)
    finally:
        cleanup.submit(mongod.drop, harness.database)


@asynccontextmanager
async def opened_store(name: str, data_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    """Open the store `name` of `STORES`, with a session "s"."""
    match name:
        case "memory":
            store = opened(MemoryHarness())
        case "sqlite":
            store = opened(SqliteHarness(data_dir))
        case _:
            store = opened_mongo(request.getfixturevalue("mongod"), request.getfixturevalue("cleanup"))
    async with store as harness:
        yield harness


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Open every store in turn, with a session "s"."""
    async with opened_store(request.param, tmp_path / "data", request) as harness:
        yield harness


@pytest.fixture(params=["memory", "mongo"])
async def leasing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Open every store with leases in turn, with a session "s"."""
    async with opened_store(request.param, tmp_path / "data", request) as harness:
        yield harness


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteHarness]:
    """Open a SQLite store with a session "s"."""
    async with opened(SqliteHarness(tmp_path / "data")) as harness:
        yield harness


@pytest.fixture
async def mongo(mongod: Mongod, cleanup: ThreadPoolExecutor) -> AsyncIterator[MongoHarness]:
    """Open a MongoDB store with a session "s"."""
    async with opened_mongo(mongod, cleanup) as harness:
        yield harness
