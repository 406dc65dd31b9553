"""Fair share: the runs of an owner with many of them do not delay the first runs of others, in both queues."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from app.domain.external.run_queue import Attempt
from app.domain.models.event import DoneEvent
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.infrastructure.fair_slots import FairSlots
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.queue.leases import LeaseTimes
from app.infrastructure.queue.supervisor import InlineRunQueue
from app.infrastructure.streams.memory import LocalSignals
from tests.contract.conftest import Harness, MongoHarness, SqliteHarness, opened_store
from tests.support.eventually import eventually

LIMIT = 4
"""Number of runs that each process of these tests carries at once."""

WAITING = 5_000
"""Number of waiting runs of one owner over which a search for work must be cheap."""


class Owners:
    """One or several processes over one store, and their owners' sessions. A run lasts until the test ends it."""

    def __init__(self, store: Harness, processes: int) -> None:
        self.store = store
        self.started: list[str] = []
        """Sessions in the order in which their runs started."""
        self.running: dict[str, asyncio.Event] = {}
        self.stopped: list[str] = []
        self.queues = [self._queue(f"process {number}") for number in range(processes)]

    def _queue(self, name: str) -> InlineRunQueue | LeasedRunQueue:
        if isinstance(self.store, SqliteHarness):
            return InlineRunQueue(self, max_runs=LIMIT)
        times = LeaseTimes(scan_interval=0.05)
        queue = LeasedRunQueue(
            self,
            self.store.leases,
            LocalSignals(),
            holder=name,
            takes_runs=True,
            times=times,
            max_runs=LIMIT,
        )
        queue.start()
        return queue

    async def send(self, owner: str, number: int, process: int = 0) -> str:
        """Create a session of `owner`, send its first message, and return its id."""
        session_id = f"{owner} {number}"
        await self.store.sessions.create(session_id, owner=owner, at=1)
        message = await self.store.event_log.append_user_message(session_id, "go", at=1, key=None)
        await self.queues[process].wake(session_id, up_to=message.number, owner=owner)
        return session_id

    def end_run(self, session_id: str) -> None:
        self.running[session_id].set()

    def owners(self) -> Counter[str]:
        """Return the number of runs of each owner that are going."""
        return Counter(session_id.split()[0] for session_id in self.running)

    async def work(self, session_id: str, attempt: Attempt) -> None:
        """Implement `RunWorker.work`."""
        assert session_id not in self.running, "two attempts at the same time"
        assert attempt.owner == session_id.split()[0]
        self.started.append(session_id)
        end = self.running[session_id] = asyncio.Event()
        try:
            await end.wait()
            await self._store_done(session_id, attempt.fencing_token)
        finally:
            del self.running[session_id]

    async def kill_open_calls(self, session_id: str) -> None:
        """Implement `RunWorker.kill_open_calls`."""

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        """Implement `RunWorker.finish_stopped`."""
        self.stopped.append(session_id)
        await self._store_done(session_id, fencing_token)

    async def release(self, session_id: str) -> None:
        """Implement `RunWorker.release`."""

    async def _store_done(self, session_id: str, fencing_token: int | None) -> None:
        checkpoint = Checkpoint(last_read_message=1)
        done = Commit(timestamp=1, events=[DoneEvent()], checkpoint=checkpoint, fencing_token=fencing_token)
        await self.store.event_log.commit(session_id, done)

    async def close(self) -> None:
        for queue in self.queues:
            await queue.close()


Make = Callable[[int], Owners]


@pytest.fixture(params=["sqlite", "memory", "mongo"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Yield a function that starts processes."""
    made: list[Owners] = []
    async with opened_store(request.param, tmp_path, request) as store:

        def start(processes: int) -> Owners:
            made.append(Owners(store, processes))
            return made[-1]

        yield start
        for each in made:
            await each.close()


@pytest.fixture
async def owners(make: Make) -> Owners:
    return make(1)


async def test_first_run_of_an_owner_starts_beside_hundred_of_another(owners: Owners) -> None:
    for number in range(100):
        await owners.send("many", number)
    await eventually(lambda: len(owners.running) == LIMIT)
    await owners.send("few", 0)
    await eventually(lambda: "few 0" in owners.running)
    assert owners.owners() == {"many": LIMIT, "few": 1}


async def test_freed_slot_goes_to_the_owner_with_the_fewest_runs(owners: Owners) -> None:
    for number in range(10):
        await owners.send("many", number)
    await eventually(lambda: len(owners.running) == LIMIT)
    for number in range(3):
        await owners.send("few", number)
    await eventually(lambda: "few 0" in owners.running)
    # The process is above its limit by one run, so the first end starts nothing.
    for number, started in enumerate((LIMIT + 1, LIMIT + 2, LIMIT + 3)):
        owners.end_run(f"many {number}")
        await eventually(lambda n=number, s=started: f"many {n}" not in owners.running and len(owners.started) == s)
    assert owners.started == ["many 0", "many 1", "many 2", "many 3", "few 0", "few 1", "many 4"]
    await eventually(lambda: owners.queues[0].waiting == 6)
    assert owners.queues[0].active == LIMIT


async def test_every_waiting_run_starts_once(owners: Owners) -> None:
    sent = [await owners.send(owner, number) for number in range(8) for owner in ("one", "two")]
    while len(owners.started) < len(sent) or owners.running:
        for session_id in list(owners.running):
            owners.end_run(session_id)
        await asyncio.sleep(0)
    assert sorted(owners.started) == sorted(sent)


async def test_stop_of_a_waiting_run_takes_effect_at_once(owners: Owners) -> None:
    for number in range(LIMIT + 1):
        await owners.send("many", number)
    await eventually(lambda: len(owners.running) == LIMIT)
    waiting = f"many {LIMIT}"
    await owners.queues[0].stop_run(waiting, up_to=1)
    assert owners.stopped == [waiting]
    assert (await owners.store.sessions.get(waiting, owner="many")).status == "completed"
    assert waiting not in owners.started


async def test_deleted_waiting_run_never_starts(owners: Owners) -> None:
    for number in range(LIMIT + 2):
        await owners.send("many", number)
    await eventually(lambda: len(owners.running) == LIMIT)
    await owners.queues[0].cancel_run(f"many {LIMIT}")
    await owners.store.sessions.delete(f"many {LIMIT}", owner="many")
    owners.end_run("many 0")
    await eventually(lambda: f"many {LIMIT + 1}" in owners.running)
    assert f"many {LIMIT}" not in owners.started


async def test_message_to_a_waiting_run_keeps_it_waiting(owners: Owners) -> None:
    for number in range(LIMIT + 1):
        await owners.send("many", number)
    await eventually(lambda: len(owners.running) == LIMIT)
    waiting = f"many {LIMIT}"
    second = await owners.store.event_log.append_user_message(waiting, "more", at=2, key=None)
    await owners.queues[0].wake(waiting, up_to=second.number, owner="many")
    assert waiting not in owners.started
    owners.end_run("many 0")
    await eventually(lambda: waiting in owners.running)
    assert owners.started.count(waiting) == 1


async def test_interrupted_run_keeps_its_slot_although_others_wait(owners: Owners) -> None:
    for number in range(LIMIT + 3):
        await owners.send("many", number)
    await eventually(lambda: len(owners.running) == LIMIT)
    second = await owners.store.event_log.append_user_message("many 0", "more", at=2, key=None)
    await owners.queues[0].wake("many 0", up_to=second.number, owner="many")
    await eventually(lambda: owners.started.count("many 0") == 2)
    assert sorted(owners.running) == [f"many {number}" for number in range(LIMIT)]


@pytest.mark.parametrize("make", ["memory", "mongo"], indirect=True)
async def test_two_workers_share_slots_fairly(make: Make) -> None:
    owners = make(2)
    for number in range(20):
        await owners.send("many", number, process=number % 2)
    await eventually(lambda: len(owners.running) == 2 * LIMIT)
    for number in range(6):
        await owners.send("few", number)
    # Each process starts one run of the other owner beyond its limit.
    await eventually(lambda: owners.owners() == {"many": 2 * LIMIT, "few": 2})
    for session_id in [each for each in owners.running if each.startswith("many")][:6]:
        owners.end_run(session_id)
    await eventually(lambda: len(owners.started) == 2 * LIMIT + 2 + 4)
    assert owners.owners()["few"] >= LIMIT


async def test_waiting_runs_are_carried_out_after_a_restart(make: Make) -> None:
    before = make(1)
    for number in range(LIMIT + 2):
        await before.send("many", number)
    await eventually(lambda: len(before.running) == LIMIT)
    await before.close()
    after = make(1)
    if isinstance(queue := after.queues[0], InlineRunQueue):
        for session_id, owner in (await after.store.sessions.list_active()).items():
            queue.resume(session_id, owner=owner)
    for number in range(2):
        await eventually(lambda: len(after.running) == LIMIT)
        after.end_run(after.started[number])
    await eventually(lambda: len(after.started) == LIMIT + 2)
    assert sorted(after.started) == [f"many {number}" for number in range(LIMIT + 2)]


async def test_claim_query_reads_only_index_entries_of_sessions_with_a_run(mongo: MongoHarness) -> None:
    await mongo.event_log.append_user_message("s", "go", at=1, key=None)
    async with AsyncMongoClient[dict[str, Any]](mongo.mongod.url) as client:
        database = client[mongo.database]
        row = await database["sessions"].find_one({"_id": "s"})
        assert row is not None
        for owner, status, count in (("many", "running", WAITING), ("few", "running", 1), ("many", "completed", 1000)):
            rows = [
                {**row, "_id": f"{owner} {status} {number}", "owner": owner, "status": status}
                for number in range(count)
            ]
            base = await database["sessions"].count_documents({}) + 1_000
            await database["sessions"].insert_many({**each, "ordinal": base + n} for n, each in enumerate(rows))
        await database.command("profile", 2)
        started = time.perf_counter()
        claimable = await mongo.leases.list_claimable(limit=256)
        print(f"listed in {(time.perf_counter() - started) * 1000:.0f} ms")
        await database.command("profile", 0)
        profile = await database["system.profile"].find_one({"command.aggregate": "sessions"})
    # "s" and the first session of each other owner come before the second one of "many".
    assert [each.owner for each in claimable[:4]].count("many") == 2
    assert len(claimable) == 256
    assert profile is not None
    assert profile["planSummary"].startswith("IXSCAN { status: 1, owner: 1, waiting_since: 1,")
    assert (profile["docsExamined"], profile["keysExamined"]) == (0, WAITING + 2)


async def test_slot_granted_to_a_cancelled_task_goes_to_the_next_one() -> None:
    slots = FairSlots(1)
    assert slots.try_take("a")
    first = asyncio.create_task(slots.take("b"))
    second = asyncio.create_task(slots.take("b"))
    await asyncio.sleep(0)
    slots.give_back("a")
    first.cancel()
    await second
    assert first.cancelled() or first.cancelling()
    assert (slots.taken, slots.waiting) == (1, 0)
