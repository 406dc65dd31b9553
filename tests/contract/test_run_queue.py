"""The `RunQueue` port, on both queues: one run at a time, nothing asked is missed, stop and cancel really end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.domain.errors import NotFound, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt, RunQueue
from app.domain.services.flows.plan_act import CRASHED, INTERRUPTED, STOPPED
from app.infrastructure.queue import supervisor
from app.infrastructure.queue.inline import InlineRunQueue
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.streams.memory.signals import LocalSignals
from tests.contract.conftest import MongoHarness, SqliteHarness, harness_of

SECONDS = 30
"""For what must happen soon: much more than it takes, for a loaded machine."""


class Worker:
    """A `RunWorker` whose attempts last until they are let go, and which writes down what happens."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.reasons: list[str] = []
        self.started = asyncio.Semaphore(0)
        self.let_go = asyncio.Semaphore(0)
        self.running = 0
        self.most = 0
        self.failures: list[Exception] = []
        self.stop_failures: list[Exception] = []

    async def work(self, session_id: str, attempt: Attempt) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.reasons.append(attempt.reason)
        self.log.append("work")
        self.started.release()
        try:
            if self.failures:
                raise self.failures.pop(0)
            await self.let_go.acquire()
            self.log.append("ended")
        except asyncio.CancelledError:
            self.log.append("cut")
            raise
        finally:
            self.running -= 1

    async def kill_open_calls(self, session_id: str) -> None:
        self.log.append("kill open calls")

    async def release(self, session_id: str) -> None:
        self.log.append("forget")

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        self.log.append(f"stop {up_to}")
        if self.stop_failures:
            raise self.stop_failures.pop(0)


@pytest.fixture
def worker() -> Worker:
    return Worker()


Make = Callable[[Worker], InlineRunQueue | LeasedRunQueue]


@pytest.fixture(params=["inline", "leased-memory", "leased-mongo"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes the queue of a process, with sessions that it may be asked about."""
    if request.param == "inline":
        yield InlineRunQueue
        return
    store = harness_of("memory" if request.param == "leased-memory" else "mongo-motor", tmp_path, request)
    assert not isinstance(store, SqliteHarness)
    await store.open()
    for name in "abcs":
        await store.sessions.create(name, owner="me", at=1)

    def made(worker: Worker) -> LeasedRunQueue:
        queue = LeasedRunQueue(worker, store.leases, LocalSignals(), holder="here", takes_runs=True)
        queue.start()
        return queue

    try:
        yield made
    finally:
        await store.close()
        if isinstance(store, MongoHarness):
            store.drop()


@pytest.fixture
async def queue(worker: Worker, make: Make) -> AsyncIterator[InlineRunQueue | LeasedRunQueue]:
    queue = make(worker)
    yield queue
    await queue.close()


async def idle(queue: RunQueue) -> None:
    """Until no run is left, nor a lease that is just being given back: these tests store no words that would be found
    then."""
    async with asyncio.timeout(SECONDS):
        while queue.active or (isinstance(queue, LeasedRunQueue) and queue._held._tasks):
            await asyncio.sleep(0.001)


async def test_a_wake_starts_a_run_and_another_interrupts_it(queue: RunQueue, worker: Worker) -> None:
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    await queue.wake("s", up_to=2)
    await worker.started.acquire()
    worker.let_go.release()
    await idle(queue)
    assert worker.log == ["work", "cut", "kill open calls", "work", "ended"]
    assert worker.reasons == [CRASHED, INTERRUPTED]


async def test_a_hundred_wakes_at_once_never_run_side_by_side(queue: RunQueue, worker: Worker) -> None:
    await asyncio.gather(*(queue.wake("s", up_to=300) for _ in range(100)))
    await worker.started.acquire()
    await asyncio.gather(*(queue.wake("s", up_to=400) for _ in range(100)))
    for _ in range(10):
        worker.let_go.release()
    await idle(queue)
    assert worker.most == 1
    assert worker.log[-1] == "ended"


async def test_sessions_run_beside_each_other(queue: RunQueue, worker: Worker) -> None:
    for name in "abc":
        await queue.wake(name, up_to=1)
    for _ in "abc":
        await worker.started.acquire()
    assert worker.running == 3


async def test_stop_cuts_the_run_kills_everything_and_returns_when_it_is_written(
    queue: RunQueue, worker: Worker
) -> None:
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    await queue.stop_run("s", up_to=7)
    assert worker.log == ["work", "cut", "stop 7"]
    await idle(queue)


async def test_stop_works_for_a_run_that_rests(queue: RunQueue, worker: Worker) -> None:
    await queue.stop_run("s", up_to=3)
    assert worker.log == ["stop 3"]


async def test_words_that_come_after_a_stop_are_worked_on(queue: RunQueue, worker: Worker) -> None:
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    worker.stop_failures.append(Superseded("newer words"))
    await queue.stop_run("s", up_to=1)
    await worker.started.acquire()
    assert worker.reasons == [CRASHED, STOPPED]


async def test_many_stops_at_once_all_return(queue: RunQueue, worker: Worker) -> None:
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(queue.stop_run("s", up_to=n) for n in range(20)))
    assert any(line.startswith("stop") for line in worker.log)


async def test_a_stop_that_cannot_be_written_says_so_and_the_run_goes_on(queue: RunQueue, worker: Worker) -> None:
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    worker.stop_failures.append(StoreUnavailable("full"))
    with pytest.raises(StoreUnavailable):
        await queue.stop_run("s", up_to=1)
    await worker.started.acquire()


async def test_cancel_ends_the_run_without_a_word(queue: RunQueue, worker: Worker) -> None:
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    await queue.cancel_run("s")
    assert worker.log[:2] == ["work", "cut"]
    assert "stop" not in " ".join(worker.log)
    assert not queue.active


async def test_a_run_that_was_overtaken_by_new_words_starts_again(queue: RunQueue, worker: Worker) -> None:
    worker.failures.append(Superseded("newer words"))
    worker.let_go.release()
    await queue.wake("s", up_to=1)
    await idle(queue)
    assert worker.reasons == [CRASHED, INTERRUPTED]


async def test_a_run_rests_while_the_store_is_away_and_goes_on_by_itself(
    queue: RunQueue, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", (0.0, 0.0))
    worker.failures.extend(StoreUnavailable("away") for _ in range(5))
    worker.let_go.release()
    await queue.wake("s", up_to=1)
    await idle(queue)
    assert worker.log == ["work"] * 6 + ["ended"]


async def test_stop_does_not_wait_for_the_store_to_come_back(
    queue: RunQueue, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", (600.0,))
    worker.failures.append(StoreUnavailable("away"))
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    async with asyncio.timeout(SECONDS):
        await queue.stop_run("s", up_to=1)
    assert "stop 1" in worker.log


async def test_a_session_deleted_under_its_stop_is_no_fault(queue: RunQueue, worker: Worker) -> None:
    worker.stop_failures.append(NotFound("gone"))
    await queue.stop_run("s", up_to=1)
    assert worker.log == ["stop 1"]


async def test_a_fault_in_an_attempt_does_not_keep_the_session_from_its_next_run(
    queue: RunQueue, worker: Worker
) -> None:
    worker.failures.append(RuntimeError("bug"))
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    worker.let_go.release()
    async with asyncio.timeout(supervisor.FAULT_PAUSE_SECONDS / 2):  # new words do not wait until the run has rested
        await queue.wake("s", up_to=2)
        await idle(queue)
    assert worker.log == ["work", "work", "ended"]


async def test_a_fault_in_ending_what_was_cut_short_keeps_neither_words_nor_a_stop_from_being_heard(
    queue: RunQueue, worker: Worker
) -> None:
    async def broken(session_id: str) -> None:
        raise RuntimeError("bug")

    worker.kill_open_calls = broken  # type: ignore[method-assign]
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    await queue.wake("s", up_to=2)
    await worker.started.acquire()
    await queue.stop_run("s", up_to=2)
    assert worker.log == ["work", "cut", "work", "cut", "stop 2"]


async def test_close_cuts_every_run_short(worker: Worker, make: Make) -> None:
    queue = make(worker)
    for name in "ab":
        await queue.wake(name, up_to=1)
        await worker.started.acquire()
    await queue.close()
    assert worker.running == 0
    await queue.wake("a", up_to=2)
    assert worker.running == 0


async def test_a_stop_that_a_shutdown_forestalls_is_not_taken_for_done(worker: Worker, make: Make) -> None:
    queue = make(worker)
    being_cut = asyncio.Event()

    async def slow_to_end(session_id: str, attempt: Attempt) -> None:
        worker.started.release()
        try:
            await asyncio.Event().wait()
        finally:
            being_cut.set()
            await asyncio.Event().wait()  # until it is cut once more, by the shutdown

    worker.work = slow_to_end  # type: ignore[method-assign]
    await queue.wake("s", up_to=1)
    await worker.started.acquire()
    stopping = asyncio.create_task(queue.stop_run("s", up_to=1))
    await being_cut.wait()
    await queue.close()
    with pytest.raises(StoreUnavailable):
        await stopping
    assert worker.log == []
