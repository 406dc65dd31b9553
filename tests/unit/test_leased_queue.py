"""The run queue of many processes: one run at a time, without relying on signals, processes or the store being up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise

import pytest

from app.domain.errors import LeaseLost, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt
from app.domain.external.signals import Signal
from app.domain.models.event import DoneEvent, EventRecord, MessageEvent
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.services.flows.plan_act import STOPPED
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.queue.leases import LeaseTimes
from tests.fakes.memory_leases import MemoryLeases
from tests.fakes.memory_store import MemoryStore
from tests.support.eventually import WAIT_SECONDS, eventually

TIMES = LeaseTimes(duration=6, renew_interval=0.02, scan_interval=0.02, settle_timeout=0.2)


class SignalNetwork:
    """Carries signals between the queues of a test. While `lossy` is set, every signal is lost."""

    def __init__(self) -> None:
        self.ends: list[SignalEnd] = []
        self.lossy = False

    def connect(self) -> "SignalEnd":
        self.ends.append(SignalEnd(self))
        return self.ends[-1]


class SignalEnd:
    """The `Signals` of one process."""

    def __init__(self, network: SignalNetwork) -> None:
        self._network = network
        self._on_signal: Callable[[Signal], None] | None = None

    def send(self, signal: Signal) -> None:
        for end in () if self._network.lossy else self._network.ends:
            if end is not self and end._on_signal is not None:
                asyncio.get_running_loop().call_soon(end._on_signal, signal)

    def listen(self, on_signal: Callable[[Signal], None]) -> None:
        self._on_signal = on_signal


class GatedWorker:
    """A `RunWorker` over the store: an attempt reads the messages, waits for the cluster's gate, and stores `done`."""

    def __init__(self, cluster: "QueueCluster", name: str) -> None:
        self._cluster = cluster
        self.name = name
        self.attempts: list[Attempt] = []
        self.released: list[str] = []
        self.kills = 0

    async def work(self, session_id: str, attempt: Attempt) -> None:
        cluster = self._cluster
        self.attempts.append(attempt)
        checkpoint = await cluster.store.load_checkpoint(session_id)
        unread = await cluster.store.unread_messages(session_id, after=checkpoint.last_read_message)
        last_read = unread[-1].number if unread else checkpoint.last_read_message
        running = cluster.running.setdefault(session_id, [])
        running.append(self.name)
        assert len(running) == 1, "two attempts at the same time"
        try:
            await cluster.gate.wait()
        finally:
            running.remove(self.name)
        await self._store_done(session_id, last_read, attempt.fencing_token)

    async def kill_open_calls(self, session_id: str) -> None:
        self.kills += 1

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        store = self._cluster.store
        checkpoint = await store.load_checkpoint(session_id)
        unread = await store.unread_messages(session_id, after=checkpoint.last_read_message)
        stopped = [message.number for message in unread if message.number <= up_to]
        if not stopped and (await store.get(session_id, owner="me")).status == "completed":
            return
        await self._store_done(session_id, stopped[-1] if stopped else checkpoint.last_read_message, fencing_token)

    async def release(self, session_id: str) -> None:
        self.released.append(session_id)

    async def _store_done(self, session_id: str, last_read: int, fencing_token: int | None) -> None:
        commit = Commit(
            timestamp=1,
            events=[DoneEvent()],
            checkpoint=Checkpoint(last_read_message=last_read),
            ends_after_message=last_read,
            fencing_token=fencing_token,
        )
        await self._cluster.store.commit(session_id, commit)


class QueueCluster:
    """Any number of processes over one store. Attempts last until `gate` is set."""

    def __init__(self) -> None:
        self.now = 0.0
        """What the store's clock shows, in seconds."""
        self._event_types: list[str] = []
        self.store = MemoryStore(on_committed=self._record_events)
        self.leases = MemoryLeases(self.store, clock=lambda: self.now)
        self.network = SignalNetwork()
        self.gate = asyncio.Event()
        self.running: dict[str, list[str]] = {}
        self.queues: list[LeasedRunQueue] = []

    def add_process(self, name: str, *, takes_runs: bool = True) -> tuple[LeasedRunQueue, GatedWorker]:
        worker = GatedWorker(self, name)
        signals = self.network.connect()
        queue = LeasedRunQueue(worker, self.leases, signals, holder=name, takes_runs=takes_runs, times=TIMES)
        queue.start()
        self.queues.append(queue)
        return queue, worker

    async def kill_process(self, queue: LeasedRunQueue) -> None:
        """End a process as SIGKILL would: it writes and releases nothing any more."""
        for task in (*queue._background, *queue._held._tasks):
            task.cancel()
        queue._held._leases = UnreachableStore()  # type: ignore[assignment]
        queue._leases = UnreachableStore()  # type: ignore[assignment]
        for run in list(queue._held._supervisor._runs.values()):
            assert run.task is not None
            if run.attempt is not None:
                run.attempt.cancel()
            run.task.cancel()
            await asyncio.wait([run.task, *([run.attempt] if run.attempt else [])])

    async def send_message(self, queue: LeasedRunQueue) -> int:
        """Store a message and wake its run through `queue`. Return the message's number."""
        number = await self.store_message()
        await queue.wake("s", up_to=number, owner="me")
        return number

    async def store_message(self) -> int:
        return (await self.store.append_user_message("s", "text", at=1, key=None)).number

    async def start_run(self, queue: LeasedRunQueue) -> int:
        """Send a message and wait until its run has started. Return the message's number."""
        number = await self.send_message(queue)
        await eventually(self.runs)
        return number

    def runs(self) -> list[str]:
        """Return the names of the processes that are running an attempt."""
        return self.running.get("s", [])

    def events(self) -> list[str]:
        """Return the types of the stored events."""
        return self._event_types

    def _record_events(self, session_id: str, records: Sequence[EventRecord]) -> None:
        self._event_types += [record.type for record in records]

    def holder(self, session_id: str = "s") -> str:
        return self.leases.stored(session_id).holder

    def stop_request(self) -> int | None:
        return self.leases.stored("s").stop_up_to


class UnreachableStore:
    """The store as a dead process sees it."""

    def __getattr__(self, name: str) -> object:
        async def refuse(*_: object, **__: object) -> None:
            raise StoreUnavailable("dead")

        return refuse


@pytest.fixture
async def cluster() -> AsyncIterator[QueueCluster]:
    cluster = QueueCluster()
    await cluster.store.create("s", owner="me", at=1)
    yield cluster
    cluster.gate.set()
    for queue in cluster.queues:
        await queue.close()


@pytest.fixture
def lost_signals(cluster: QueueCluster) -> Iterator[None]:
    cluster.network.lossy = True
    yield


async def test_message_to_an_api_process_is_carried_out_by_a_worker(cluster: QueueCluster) -> None:
    api, _ = cluster.add_process("api", takes_runs=False)
    cluster.add_process("worker")
    await cluster.start_run(api)
    cluster.gate.set()
    await eventually(lambda: cluster.events() == ["message", "done"])
    await eventually(lambda: not cluster.holder())


async def test_hundred_wakes_in_five_processes_are_one_attempt(cluster: QueueCluster) -> None:
    processes = [cluster.add_process(f"worker-{number}") for number in range(5)]
    number = await cluster.store_message()
    await asyncio.gather(*(queue.wake("s", up_to=number, owner="me") for queue, _ in processes for _ in range(20)))
    await eventually(cluster.runs)
    cluster.gate.set()
    await eventually(lambda: "done" in cluster.events())
    assert sum(len(worker.attempts) for _, worker in processes) == 1


async def test_message_interrupts_the_run_in_another_process(cluster: QueueCluster) -> None:
    first, worker = cluster.add_process("worker")
    await cluster.start_run(first)
    api, _ = cluster.add_process("api", takes_runs=False)
    await cluster.send_message(api)
    await eventually(lambda: len(worker.attempts) == 2)
    assert worker.kills == 1


@pytest.mark.usefixtures("lost_signals")
async def test_messages_and_stops_arrive_when_all_signals_are_lost(cluster: QueueCluster) -> None:
    _, worker = cluster.add_process("worker")
    api, _ = cluster.add_process("api", takes_runs=False)
    await cluster.start_run(api)
    up_to = await cluster.send_message(api)
    await eventually(lambda: len(worker.attempts) == 2)
    await api.stop_run("s", up_to=up_to)
    assert cluster.events() == ["message", "message", "done"]
    assert not cluster.runs()
    assert len(worker.attempts) == 2, "a known message interrupted the run again"


async def test_stop_of_a_run_in_another_process_returns_once_done_is_stored(cluster: QueueCluster) -> None:
    first, _ = cluster.add_process("worker")
    up_to = await cluster.start_run(first)
    api, _ = cluster.add_process("api", takes_runs=False)
    await api.stop_run("s", up_to=up_to)
    assert cluster.events() == ["message", "done"]
    assert await cluster.leases.requested_stop("s") is None
    await api.stop_run("s", up_to=up_to)
    assert cluster.events() == ["message", "done"]


async def test_stop_of_a_run_without_a_holder_is_carried_out_by_an_api_process(cluster: QueueCluster) -> None:
    api, api_worker = cluster.add_process("api", takes_runs=False)
    up_to = await cluster.send_message(api)
    await api.stop_run("s", up_to=up_to)
    assert cluster.events() == ["message", "done"]
    assert api_worker.attempts == []


async def test_message_after_a_stop_in_an_api_process_is_left_to_a_worker(cluster: QueueCluster) -> None:
    api, api_worker = cluster.add_process("api", takes_runs=False)
    up_to = await cluster.send_message(api)
    await cluster.send_message(api)
    await api.stop_run("s", up_to=up_to)
    assert "done" not in cluster.events()
    assert api_worker.attempts == []
    cluster.add_process("worker")
    await eventually(cluster.runs)


async def test_run_of_a_dead_worker_continues_elsewhere_after_its_lease_and_not_before(cluster: QueueCluster) -> None:
    first, _ = cluster.add_process("first")
    await cluster.start_run(first)
    _, second = cluster.add_process("second")
    await cluster.kill_process(first)
    cluster.now += TIMES.duration - 0.1
    assert await cluster.leases.list_claimable(limit=9) == []
    cluster.now += 0.2
    await eventually(lambda: cluster.runs() == ["second"])
    assert [attempt.crashed for attempt in second.attempts] == [True]


async def test_living_worker_keeps_its_run(cluster: QueueCluster) -> None:
    first, _ = cluster.add_process("first")
    await cluster.start_run(first)
    _, second = cluster.add_process("second")
    for _ in range(20):
        lease_end = cluster.leases.stored("s").valid_until
        cluster.now += TIMES.duration / 2
        await eventually(lambda lease_end=lease_end: cluster.leases.stored("s").valid_until > lease_end)
    assert cluster.runs() == ["first"]
    assert second.attempts == []


async def test_worker_that_lost_its_lease_cannot_write_and_ends_its_attempt(cluster: QueueCluster) -> None:
    first, worker = cluster.add_process("first")
    await cluster.start_run(first)
    fencing_token = worker.attempts[0].fencing_token
    await cluster.leases.take_over("s", holder="another", seconds=9)
    with pytest.raises(LeaseLost):
        await cluster.store.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=fencing_token))
    await eventually(lambda: not cluster.runs())
    assert cluster.events() == ["message"]
    await eventually(lambda: worker.released == ["s"])
    assert cluster.holder() == "another"


async def test_run_of_a_closing_process_continues_at_once_in_another(cluster: QueueCluster) -> None:
    first, _ = cluster.add_process("first")
    await cluster.start_run(first)
    _, second = cluster.add_process("second")
    await first.close()
    await eventually(lambda: cluster.runs() == ["second"])
    assert [attempt.crashed for attempt in second.attempts] == [False]
    await cluster.send_message(first)
    await eventually(lambda: len(second.attempts) == 2)


async def test_messages_that_arrive_while_a_run_ends_are_all_read(cluster: QueueCluster) -> None:
    queue, worker = cluster.add_process("worker")
    cluster.gate.set()
    for count in range(1, 40):
        await cluster.send_message(queue)
        await eventually(lambda count=count: cluster.events().count("message") == count)
    await eventually(lambda: cluster.events()[-1] == "done")
    checkpoint = await cluster.store.load_checkpoint("s")
    assert await cluster.store.unread_messages("s", after=checkpoint.last_read_message) == []
    assert worker.attempts


async def test_cancel_run_for_a_deletion_ends_the_run_anywhere_and_prevents_a_new_one(cluster: QueueCluster) -> None:
    first, worker = cluster.add_process("first")
    await cluster.start_run(first)
    api, _ = cluster.add_process("api", takes_runs=False)
    _, third = cluster.add_process("third")
    await api.cancel_run("s")
    assert not cluster.runs()
    assert worker.released == ["s"]
    await cluster.store_message()
    assert await cluster.leases.list_claimable(limit=9) == []
    await cluster.store.delete("s", owner="me")
    await api.cancel_run("s")
    assert third.attempts == []


async def test_run_continues_after_a_deletion_that_failed(cluster: QueueCluster) -> None:
    queue, worker = cluster.add_process("worker")
    await cluster.start_run(queue)
    await queue.cancel_run("s")
    await queue.wake("s", up_to=1, owner="me")
    cluster.now += TIMES.duration + 1
    await eventually(cluster.runs)
    assert len(worker.attempts) == 2


async def test_run_ends_after_the_store_was_unavailable_longer_than_a_lease(cluster: QueueCluster) -> None:
    queue, worker = cluster.add_process("worker")
    await cluster.start_run(queue)
    cluster.store.trouble = "away"
    cluster.gate.set()
    await eventually(lambda: not cluster.runs())
    cluster.now += 2 * TIMES.duration
    cluster.store.trouble = None
    await eventually(lambda: cluster.events() == ["message", "done"])
    assert not any(attempt.crashed for attempt in worker.attempts)
    await eventually(lambda: not cluster.holder())


async def test_run_whose_worker_died_while_the_store_was_unavailable_continues_elsewhere(
    cluster: QueueCluster,
) -> None:
    queue, _ = cluster.add_process("worker")
    await cluster.start_run(queue)
    _, other = cluster.add_process("other")
    cluster.store.trouble = "away"
    await cluster.kill_process(queue)
    cluster.now += 2 * TIMES.duration
    cluster.store.trouble = None
    await eventually(lambda: [attempt.crashed for attempt in other.attempts] == [True])


async def test_lease_whose_release_failed_is_released_later(cluster: QueueCluster) -> None:
    queue, _ = cluster.add_process("worker")
    cluster.gate.set()
    release = cluster.leases.release
    failures = iter([True, True])

    async def fail_twice(lease: object) -> bool:
        if next(failures, False):
            raise StoreUnavailable("away")
        return await release(lease)  # type: ignore[arg-type]

    cluster.leases.release = fail_twice  # type: ignore[method-assign, assignment]
    await cluster.send_message(queue)
    await eventually(lambda: "done" in cluster.events())
    await eventually(lambda: not cluster.holder())


async def test_lease_granted_without_a_response_is_released(cluster: QueueCluster) -> None:
    queue, _ = cluster.add_process("worker")
    await cluster.store.create("t", owner="me", at=1)
    await cluster.start_run(queue)
    await cluster.leases.acquire("t", holder="worker", seconds=6)
    await eventually(lambda: not cluster.holder("t"))
    assert cluster.runs() == ["worker"]


async def test_stop_whose_worker_dies_is_carried_out_by_the_requester(cluster: QueueCluster) -> None:
    first, _ = cluster.add_process("first")
    up_to = await cluster.start_run(first)
    api, _ = cluster.add_process("api", takes_runs=False)
    await cluster.kill_process(first)
    stopping = asyncio.create_task(api.stop_run("s", up_to=up_to))
    await eventually(lambda: cluster.stop_request() == up_to)
    cluster.now += TIMES.duration + 1
    await stopping
    assert cluster.events() == ["message", "done"]
    await eventually(lambda: cluster.stop_request() is None)


async def test_stop_request_of_a_dead_process_is_carried_out_by_a_worker(cluster: QueueCluster) -> None:
    await cluster.store_message()
    await cluster.leases.acquire("s", holder="dead", seconds=6)
    await cluster.leases.request_stop("s", up_to=1)
    cluster.now += 7
    _, worker = cluster.add_process("worker")
    await eventually(lambda: cluster.events() == ["message", "done"])
    assert worker.attempts == []


async def test_stop_preempted_by_the_close_of_its_worker_is_carried_out_elsewhere(cluster: QueueCluster) -> None:
    first, worker = cluster.add_process("first")
    cancelled = asyncio.Event()

    async def end_slowly(session_id: str, attempt: Attempt) -> None:
        cluster.running["s"] = ["first"]
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await asyncio.Event().wait()  # Until `close` cancels it once more.

    worker.work = end_slowly  # type: ignore[method-assign]
    up_to = await cluster.start_run(first)
    api, _ = cluster.add_process("api", takes_runs=False)
    stopping = asyncio.create_task(api.stop_run("s", up_to=up_to))
    await cancelled.wait()
    await first.close()
    async with asyncio.timeout(WAIT_SECONDS):
        await stopping
    assert cluster.events() == ["message", "done"]


async def test_repeated_stop_request_is_confirmed_again_while_the_run_carries_a_newer_message(
    cluster: QueueCluster,
) -> None:
    first, worker = cluster.add_process("first")
    up_to = await cluster.start_run(first)
    await cluster.store_message()
    api, _ = cluster.add_process("api", takes_runs=False)
    await api.stop_run("s", up_to=up_to)
    await eventually(cluster.runs)
    await cluster.leases.request_stop("s", up_to=up_to)
    await eventually(lambda: cluster.stop_request() is None)
    assert cluster.runs() == ["first"]
    assert [attempt.reason for attempt in worker.attempts].count(STOPPED) == 1
    assert "done" not in cluster.events()


async def test_stop_is_carried_out_after_its_caller_was_cancelled(cluster: QueueCluster) -> None:
    queue, worker = cluster.add_process("worker")
    entered, released = asyncio.Event(), asyncio.Event()
    finish_stopped = worker.finish_stopped

    async def finish_slowly(session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        entered.set()
        await released.wait()
        await finish_stopped(session_id, up_to=up_to, fencing_token=fencing_token)

    worker.finish_stopped = finish_slowly  # type: ignore[method-assign]
    await cluster.store_message()
    stopping = asyncio.create_task(queue.stop_run("s", up_to=1))
    await entered.wait()
    stopping.cancel()
    await asyncio.wait([stopping])
    released.set()
    await eventually(lambda: cluster.events() == ["message", "done"])


async def test_unexpected_errors_in_an_attempt_and_a_stop_do_not_end_the_run(
    cluster: QueueCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.infrastructure.queue.supervisor.FAULT_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("app.infrastructure.queue.leases.FAULT_PAUSE_SECONDS", 0.05)
    queue, worker = cluster.add_process("worker")
    errors = [RuntimeError("bug")]
    work = worker.work

    async def fail_once(session_id: str, attempt: Attempt) -> None:
        if errors:
            raise errors.pop()
        await work(session_id, attempt)

    async def fail(session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        raise RuntimeError("bug")

    worker.work = fail_once  # type: ignore[method-assign]
    worker.finish_stopped = fail  # type: ignore[method-assign]
    up_to = await cluster.start_run(queue)
    with pytest.raises(StoreUnavailable):
        await queue.stop_run("s", up_to=up_to)
    await eventually(lambda: len(worker.attempts) >= 2)


async def test_attempts_that_fail_unexpectedly_are_separated_by_pauses(
    cluster: QueueCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.infrastructure.queue.supervisor.FAULT_PAUSE_SECONDS", 0.2)
    queue, worker = cluster.add_process("worker")
    started_at: list[float] = []

    async def fail(session_id: str, attempt: Attempt) -> None:
        started_at.append(asyncio.get_running_loop().time())
        raise RuntimeError("bug")

    worker.work = fail  # type: ignore[method-assign]
    await cluster.send_message(queue)
    await eventually(lambda: len(started_at) == 3)
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(started_at))


async def test_attempt_superseded_by_a_message_without_a_wake_is_repeated(cluster: QueueCluster) -> None:
    queue, worker = cluster.add_process("worker")
    await cluster.start_run(queue)
    await cluster.store_message()
    cluster.gate.set()
    await eventually(lambda: "done" in cluster.events())
    assert len(worker.attempts) == 2
    with pytest.raises(Superseded):
        await cluster.store.commit(
            "s", Commit(timestamp=1, events=[MessageEvent(role="user", content="")], ends_after_message=1)
        )
