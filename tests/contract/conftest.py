"""The stores under contract, each with what a test needs beside the ports."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from app.domain.models.event import EventRecord
from app.domain.repositories.journal import Journal
from app.domain.repositories.pictures import PictureRepository
from app.domain.repositories.sessions import SessionRepository
from app.domain.repositories.tickets import TicketRepository
from app.infrastructure.persistence.sqlite import SqliteStore
from app.interfaces.wire import encode_event
from tests.fakes.memory_store import MemoryPictures, MemoryStore
from tests.fakes.memory_tickets import MemoryTickets

Committed = list[tuple[str, Sequence[EventRecord]]]


class MemoryHarness:
    """The fake; it has nothing to lose by being reopened."""

    def __init__(self, _data_dir: Path) -> None:
        self.committed: Committed = []
        self._store = MemoryStore(on_committed=lambda session, records: self.committed.append((session, records)))
        self.journal: Journal = self._store
        self.sessions: SessionRepository = self._store
        self.pictures: PictureRepository = MemoryPictures(self._store)
        self.tickets: TicketRepository = MemoryTickets(self._store)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


class SqliteHarness:
    """The real thing on a real file."""

    journal: Journal
    sessions: SessionRepository
    pictures: PictureRepository
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
        self.journal, self.sessions, self.pictures = self.store.journal, self.store.sessions, self.store.pictures
        self.tickets = self.store.tickets

    async def close(self) -> None:
        await self.store.close()


Harness = MemoryHarness | SqliteHarness

HARNESSES = {"memory": MemoryHarness, "sqlite": SqliteHarness}


@pytest.fixture(params=sorted(HARNESSES))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    harness = HARNESSES[request.param](tmp_path / "data")
    await harness.open()
    try:
        await harness.sessions.create("s", owner="me", at=100)
        yield harness
    finally:
        await harness.close()


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteHarness]:
    harness = SqliteHarness(tmp_path / "data")
    await harness.open()
    try:
        await harness.sessions.create("s", owner="me", at=100)
        yield harness
    finally:
        await harness.close()
