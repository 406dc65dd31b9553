"""The stores under contract, each with what a test needs beside the ports."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from app.domain.models.event import EventRecord
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.leases import LeaseRepository
from app.domain.repositories.screenshots import ScreenshotRepository
from app.domain.repositories.sessions import SessionRepository
from app.domain.repositories.tickets import TicketRepository
from app.infrastructure.persistence.mongo.client import ClientName
from app.infrastructure.persistence.mongo.store import MongoStore
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event
from tests.fakes.memory_leases import MemoryLeases
from tests.fakes.memory_store import MemoryScreenshots, MemoryStore
from tests.fakes.memory_tickets import MemoryTickets
from tests.support.stores import Mongod, require_mongod

Committed = list[tuple[str, Sequence[EventRecord]]]
T = TypeVar("T", "MemoryHarness", "SqliteHarness", "MongoHarness", "Harness")


class MemoryHarness:
    """The fake; it has nothing to lose by being reopened."""

    def __init__(self, _data_dir: Path) -> None:
        self.committed: Committed = []
        self._store = MemoryStore(on_committed=lambda session, records: self.committed.append((session, records)))
        self.event_log: EventLog = self._store
        self.sessions: SessionRepository = self._store
        self.screenshots: ScreenshotRepository = MemoryScreenshots(self._store)
        self.tickets: TicketRepository = MemoryTickets(self._store)
        self.leases: LeaseRepository = MemoryLeases(self._store)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


class SqliteHarness:
    """The real thing on a real file."""

    event_log: EventLog
    sessions: SessionRepository
    screenshots: ScreenshotRepository
    tickets: TicketRepository

    def __init__(self, data_dir: Path) -> None:
        self.committed: Committed = []
        self._data_dir = data_dir

    async def open(self) -> None:
        self.store = SqliteStore(
            self._data_dir,
            encode=encode_event,
            on_committed=lambda session, records: self.committed.append((session, records)),
        )
        await self.store.open()
        self.event_log, self.sessions, self.screenshots = (
            self.store.event_log,
            self.store.sessions,
            self.store.screenshots,
        )
        self.tickets = self.store.tickets

    async def close(self) -> None:
        await self.store.close()


class MongoHarness:
    """The real thing on a real server, in a database that lives as long as the test."""

    event_log: EventLog
    sessions: SessionRepository
    screenshots: ScreenshotRepository
    tickets: TicketRepository
    leases: LeaseRepository

    def __init__(self, mongod: Mongod, client: ClientName, database: str | None = None) -> None:
        self.committed: Committed = []
        self.mongod = mongod
        self.client: ClientName = client
        self.database = database or f"test_{secrets.token_hex(6)}"

    async def open(self) -> None:
        self.store = MongoStore(
            self.mongod.url,
            self.database,
            encode=encode_event,
            on_committed=lambda session, records: self.committed.append((session, records)),
            client=self.client,
        )
        await self.store.open()
        self.event_log, self.sessions, self.screenshots = (
            self.store.event_log,
            self.store.sessions,
            self.store.screenshots,
        )
        self.tickets, self.leases = self.store.tickets, self.store.leases

    async def close(self) -> None:
        await self.store.close()

    def drop(self) -> None:
        self.mongod.drop(self.database)


Harness = MemoryHarness | SqliteHarness | MongoHarness

CLIENTS: dict[str, ClientName] = {"mongo-motor": "motor", "mongo-pymongo": "pymongo"}
STORES = ("memory", "mongo-motor", "mongo-pymongo", "sqlite")


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """One server for all tests that do not kill it."""
    require_mongod()
    server = Mongod(tmp_path_factory.mktemp("mongod"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


def harness_of(name: str, data_dir: Path, request: pytest.FixtureRequest) -> Harness:
    match name:
        case "memory":
            return MemoryHarness(data_dir)
        case "sqlite":
            return SqliteHarness(data_dir)
        case _:
            return MongoHarness(request.getfixturevalue("mongod"), CLIENTS[name])


async def opened(harness: T) -> AsyncIterator[T]:
    """The harness, open and with a session; afterwards nothing is left of it."""
    await harness.open()
    try:
        await harness.sessions.create("s", owner="me", at=100)
        yield harness
    finally:
        await harness.close()
        if isinstance(harness, MongoHarness):
            await asyncio.to_thread(harness.drop)


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async for harness in opened(harness_of(request.param, tmp_path / "data", request)):
        yield harness


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteHarness]:
    async for harness in opened(SqliteHarness(tmp_path / "data")):
        yield harness


@pytest.fixture(params=sorted(CLIENTS))
async def mongo(request: pytest.FixtureRequest, mongod: Mongod) -> AsyncIterator[MongoHarness]:
    async for harness in opened(MongoHarness(mongod, CLIENTS[request.param])):
        yield harness


@pytest.fixture(params=["memory", *sorted(CLIENTS)])
async def leasing(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryHarness | MongoHarness]:
    """The stores that lease sessions."""
    harness = harness_of(request.param, tmp_path, request)
    assert not isinstance(harness, SqliteHarness)
    async for each in opened(harness):
        yield each
