"""When MongoDB counts as unavailable: the rules, without a server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from bson import Timestamp

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.availability import (
    NEW_PRIMARY,
    NO_MAJORITY,
    MajorityMonitor,
    StoreAvailability,
)
from app.infrastructure.persistence.mongo.client import NO_SERVER, Document, MongoDatabase
from tests.support.eventually import eventually


class HangingDatabase(MongoDatabase):
    """A server that answers checks once `answers` is set, and hangs before."""

    def __init__(self) -> None:
        super().__init__("mongodb://127.0.0.1:1/", "none", "pymongo", on_lost=lambda: None)
        self.answers = asyncio.Event()
        self.checks = 0
        self._checked = asyncio.Condition()

    async def hello(self) -> Document:
        async with self._checked:
            self.checks += 1
            self._checked.notify_all()
        await self.answers.wait()
        return {}

    async def wait_for_checks(self, count: int) -> None:
        async with asyncio.timeout(20), self._checked:
            await self._checked.wait_for(lambda: self.checks >= count)


class Harness:
    def __init__(self) -> None:
        self.database = HangingDatabase()
        self.reported: list[StoreUnavailable] = []
        self.availability = StoreAvailability(self.database, on_unavailable=self.reported.append)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    made.availability.start()
    yield made
    await made.availability.close()


async def one() -> int:
    return 1


async def test_one_slow_check_does_not_make_the_store_unavailable(harness: Harness) -> None:
    await harness.database.wait_for_checks(2)  # the first check has timed out
    harness.database.answers.set()
    await harness.database.wait_for_checks(4)
    assert harness.availability.reason is None
    assert not harness.reported


async def test_slow_checks_do_not_make_the_store_unavailable_while_operations_succeed(harness: Harness) -> None:
    for check in range(1, 5):
        await harness.database.wait_for_checks(check)
        assert await harness.availability.read(one) == 1
    assert harness.availability.reason is None
    assert not harness.reported


async def test_two_slow_checks_without_a_success_make_the_store_unavailable_until_a_check_succeeds(
    harness: Harness,
) -> None:
    availability = harness.availability
    read_in_flight = asyncio.create_task(availability.read(asyncio.Event().wait))
    await eventually(lambda: availability.reason is not None, seconds=20)
    assert [str(error) for error in harness.reported] == [availability.reason]
    with pytest.raises(StoreUnavailable):
        await read_in_flight
    for call in (availability.read, availability.write):
        with pytest.raises(StoreUnavailable, match="does not answer in time"):
            await call(one)
    harness.database.answers.set()
    await eventually(lambda: availability.reason is None, seconds=20)
    assert await availability.write(one) == 1


async def test_cancelled_read_returns_although_the_client_ignores_the_cancellation(harness: Harness) -> None:
    started, end = asyncio.Event(), asyncio.Event()

    async def ignore_cancellation() -> None:
        started.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue

    caller = asyncio.create_task(harness.availability.read(ignore_cancellation))
    await started.wait()
    caller.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(caller, return_exceptions=True)
    assert caller.cancelled()
    end.set()


async def test_wait_while_available_is_refused_when_the_store_becomes_unavailable_and_the_work_goes_on(
    harness: Harness,
) -> None:
    proceed, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await proceed.wait()
        done.set()

    waiting = asyncio.create_task(harness.availability.wait_while_available(work()))
    with pytest.raises(StoreUnavailable):
        await waiting
    assert not done.is_set()
    proceed.set()
    await done.wait()


async def test_wait_while_available_returns_the_result_of_the_work(harness: Harness) -> None:
    harness.database.answers.set()
    assert await harness.availability.wait_while_available(one()) == 1


def hello(written: int, confirmed: int, *, term: int = 1, confirmed_term: int | None = None) -> dict[str, Any]:
    """Return the reply of a primary that wrote up to `written`, of which a majority has `confirmed`."""
    positions = {
        "opTime": (written, term),
        "majorityOpTime": (confirmed, term if confirmed_term is None else confirmed_term),
    }
    last_write = {name: {"ts": Timestamp(1_000, step), "t": each} for name, (step, each) in positions.items()}
    return {"isWritablePrimary": True, "lastWrite": last_write}


def test_primary_whose_writes_reach_a_majority_within_a_second_is_usable() -> None:
    monitor = MajorityMonitor()
    assert all(monitor.check(hello(n + 5, n), now=n / 5) is None for n in range(20))


def test_write_that_does_not_reach_a_majority_within_two_seconds_makes_the_primary_unusable() -> None:
    monitor = MajorityMonitor()
    assert monitor.check(hello(5, 5), now=0) is None
    assert monitor.check(hello(6, 5), now=60) is None  # nothing was written in between
    assert monitor.check(hello(7, 5), now=61) is None
    assert monitor.check(hello(8, 5), now=62) == NO_MAJORITY
    assert monitor.check(hello(8, 5), now=90) == NO_MAJORITY
    assert monitor.check(hello(8, 6), now=91) is None
    assert monitor.check(hello(8, 6), now=93) == NO_MAJORITY  # the eighth write is now the one that is late
    assert monitor.check(hello(8, 8), now=94) is None


def test_new_primary_is_usable_once_a_majority_has_a_write_of_its_term() -> None:
    monitor = MajorityMonitor()
    assert monitor.check(hello(9, 5), now=0) is None
    assert monitor.check(hello(7, 5, term=2, confirmed_term=1), now=1) == NEW_PRIMARY
    # The writes that only the old primary had are gone, and the monitor does not wait for them.
    assert monitor.check(hello(7, 7, term=2), now=3) is None


def test_server_that_is_not_primary_is_unusable() -> None:
    assert MajorityMonitor().check({"isWritablePrimary": False}, now=0) == NO_SERVER


def test_router_is_usable() -> None:
    assert MajorityMonitor().check({"isWritablePrimary": True, "msg": "isdbgrid"}, now=0) is None
