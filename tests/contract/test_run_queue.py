"""The contract of the `RunQueue` port, for both queues."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.domain.errors import NotFound, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt, RunQueue
from app.domain.services.flows.plan_act import CRASHED, INTERRUPTED, STOPPED
from app.infrastructure.queue import supervisor
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.queue.supervisor import InlineRunQueue
from app.infrastructure.streams.memory import LocalSignals
from tests.contract.conftest import SqliteHarness, opened_store
from tests.support.eventually import WAIT_SECONDS, eventually


class RecordingWorker:
    """A `RunWorker` that records what is called. Its attempts last until the test releases them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.reasons: list[str] = []
        self.started = asyncio.Semaphore(0)
        self.released = asyncio.Semaphore(0)
        self.running = 0
        self.max_running = 0
        self.attempt_errors: list[Exception] = []
        self.stop_errors: list[Exception] = []

    async def work(self, session_id: str, attempt: Attempt) -> None:
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        self.reasons.append(attempt.reason)
        self.log.append("attempt")
        self.started.release()
        try:
            if self.attempt_errors:
                raise self.attempt_errors.pop(0)
            await self.released.acquire()
            self.log.append("ended")
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        finally:
            self.running -= 1

    async def kill_open_calls(self, session_id: str) -> None:
        self.log.append("kill open calls")

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        self.log.append(f"stop {up_to}")
        if self.stop_errors:
            raise self.stop_errors.pop(0)

    async def release(self, session_id: str) -> None:
        self.log.append("release")


@pytest.fixture
def worker() -> RecordingWorker:
    return RecordingWorker()


AnyQueue = InlineRunQueue | LeasedRunQueue
MakeQueue = Callable[[RecordingWorker], AnyQueue]


@pytest.fixture(params=["inline", "leased-memory", "leased-mongo"])
async def make_queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MakeQueue]:
    """Yield a function that creates a queue. The sessions `a`, `b`, `c` and `s` exist."""
    if request.param == "inline":
        yield InlineRunQueue
        return
    name = "memory" if request.param == "leased-memory" else "mongo"
    async with opened_store(name, tmp_path, request) as store:
        assert not isinstance(store, SqliteHarness)
        leases = store.leases
        for session_id in "abc":
            await store.sessions.create(session_id, owner="me", at=1)

        def make(worker: RecordingWorker) -> LeasedRunQueue:
            queue = LeasedRunQueue(worker, leases, LocalSignals(), holder="here", takes_runs=True)
            queue.start()
            return queue

        yield make


@pytest.fixture
async def queue(worker: RecordingWorker, make_queue: MakeQueue) -> AsyncIterator[AnyQueue]:
    queue = make_queue(worker)
    yield queue
    await queue.close()


async def wait_until_idle(queue: AnyQueue) -> None:
    """Wait until there is no run and no lease that is being released."""
    await eventually(
        lambda: not (queue.active or (isinstance(queue, LeasedRunQueue) and queue._held._tasks)), interval=0.001
    )


async def test_wake_starts_a_run_and_a_second_wake_interrupts_it(queue: AnyQueue, worker: RecordingWorker) -> None:
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    await queue.wake("s", up_to=2, owner="me")
    await worker.started.acquire()
    worker.released.release()
    await wait_until_idle(queue)
    assert worker.log == ["attempt", "cancelled", "kill open calls", "attempt", "ended"]
    assert worker.reasons == [CRASHED, INTERRUPTED]


async def test_hundred_concurrent_wakes_never_run_two_attempts_at_once(
    queue: AnyQueue, worker: RecordingWorker
) -> None:
    await asyncio.gather(*(queue.wake("s", up_to=300, owner="me") for _ in range(100)))
    await worker.started.acquire()
    await asyncio.gather(*(queue.wake("s", up_to=400, owner="me") for _ in range(100)))
    for _ in range(10):
        worker.released.release()
    await wait_until_idle(queue)
    assert worker.max_running == 1
    assert worker.log[-1] == "ended"


async def test_sessions_run_concurrently(queue: RunQueue, worker: RecordingWorker) -> None:
    for session_id in "abc":
        await queue.wake(session_id, up_to=1, owner="me")
    for _ in "abc":
        await worker.started.acquire()
    assert worker.running == 3


async def test_stop_run_cancels_the_attempt_and_returns_once_the_run_is_finished(
    queue: AnyQueue, worker: RecordingWorker
) -> None:
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    await queue.stop_run("s", up_to=7)
    assert worker.log == ["attempt", "cancelled", "stop 7"]
    await wait_until_idle(queue)


async def test_stop_run_without_an_attempt_finishes_the_run(queue: RunQueue, worker: RecordingWorker) -> None:
    await queue.stop_run("s", up_to=3)
    assert worker.log == ["stop 3"]


async def test_message_after_the_stop_request_starts_another_attempt(queue: RunQueue, worker: RecordingWorker) -> None:
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    worker.stop_errors.append(Superseded("newer message"))
    await queue.stop_run("s", up_to=1)
    await worker.started.acquire()
    assert worker.reasons == [CRASHED, STOPPED]


async def test_concurrent_stops_all_return(queue: RunQueue, worker: RecordingWorker) -> None:
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*(queue.stop_run("s", up_to=number) for number in range(20)))
    assert any(line.startswith("stop") for line in worker.log)


async def test_stop_that_cannot_be_stored_raises_and_the_run_continues(
    queue: RunQueue, worker: RecordingWorker
) -> None:
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    worker.stop_errors.append(StoreUnavailable("full"))
    with pytest.raises(StoreUnavailable):
        await queue.stop_run("s", up_to=1)
    await worker.started.acquire()


async def test_cancel_run_ends_the_attempt_without_finishing_the_run(queue: RunQueue, worker: RecordingWorker) -> None:
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    await queue.cancel_run("s")
    assert worker.log[:2] == ["attempt", "cancelled"]
    assert "stop" not in " ".join(worker.log)
    assert not queue.active


async def test_superseded_attempt_is_followed_by_another(queue: AnyQueue, worker: RecordingWorker) -> None:
    worker.attempt_errors.append(Superseded("newer message"))
    worker.released.release()
    await queue.wake("s", up_to=1, owner="me")
    await wait_until_idle(queue)
    assert worker.reasons == [CRASHED, INTERRUPTED]


async def test_attempts_are_repeated_until_the_store_is_available(
    queue: AnyQueue, worker: RecordingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", (0.0, 0.0))
    worker.attempt_errors.extend(StoreUnavailable("away") for _ in range(5))
    worker.released.release()
    await queue.wake("s", up_to=1, owner="me")
    await wait_until_idle(queue)
    assert worker.log == ["attempt"] * 6 + ["ended"]


async def test_stop_run_does_not_wait_for_the_pause_between_attempts(
    queue: RunQueue, worker: RecordingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_RETRY_SECONDS", (600.0,))
    worker.attempt_errors.append(StoreUnavailable("away"))
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    async with asyncio.timeout(WAIT_SECONDS):
        await queue.stop_run("s", up_to=1)
    assert "stop 1" in worker.log


async def test_stop_run_of_a_session_deleted_meanwhile_returns(queue: RunQueue, worker: RecordingWorker) -> None:
    worker.stop_errors.append(NotFound("gone"))
    await queue.stop_run("s", up_to=1)
    assert worker.log == ["stop 1"]


async def test_message_after_an_unexpected_error_does_not_wait_for_the_pause(
    queue: AnyQueue, worker: RecordingWorker
) -> None:
    worker.attempt_errors.append(RuntimeError("bug"))
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    worker.released.release()
    async with asyncio.timeout(supervisor.FAULT_PAUSE_SECONDS / 2):
        await queue.wake("s", up_to=2, owner="me")
        await wait_until_idle(queue)
    assert worker.log == ["attempt", "attempt", "ended"]


async def test_unexpected_error_while_killing_open_calls_blocks_neither_messages_nor_stops(
    queue: RunQueue, worker: RecordingWorker
) -> None:
    async def fail_unexpectedly(session_id: str) -> None:
        raise RuntimeError("bug")

    worker.kill_open_calls = fail_unexpectedly  # type: ignore[method-assign]
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    await queue.wake("s", up_to=2, owner="me")
    await worker.started.acquire()
    await queue.stop_run("s", up_to=2)
    assert worker.log == ["attempt", "cancelled", "attempt", "cancelled", "stop 2"]


async def test_close_cancels_every_run_and_later_wakes_start_none(
    worker: RecordingWorker, make_queue: MakeQueue
) -> None:
    queue = make_queue(worker)
    for session_id in "ab":
        await queue.wake(session_id, up_to=1, owner="me")
        await worker.started.acquire()
    await queue.close()
    assert worker.running == 0
    await queue.wake("a", up_to=2, owner="me")
    assert worker.running == 0


async def test_stop_run_preempted_by_close_raises(worker: RecordingWorker, make_queue: MakeQueue) -> None:
    queue = make_queue(worker)
    cancelled = asyncio.Event()

    async def end_slowly(session_id: str, attempt: Attempt) -> None:
        worker.started.release()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await asyncio.Event().wait()  # Until `close` cancels it once more.

    worker.work = end_slowly  # type: ignore[method-assign]
    await queue.wake("s", up_to=1, owner="me")
    await worker.started.acquire()
    stopping = asyncio.create_task(queue.stop_run("s", up_to=1))
    await cancelled.wait()
    await queue.close()
    with pytest.raises(StoreUnavailable):
        await stopping
    assert worker.log == []
