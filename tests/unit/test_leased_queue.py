"""The run queue of many processes: one run at a time whoever is asked, what is asked reaches it, and nothing rests on
a signal, on a process that lives, or on a store that answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise

import pytest

from app.domain.errors import LeaseLost, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt
from app.domain.external.signals import Signal
from app.domain.models.event import DoneEvent, MessageEvent
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.services.flows.plan_act import STOPPED
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.queue.leases import LeaseTimes
from tests.fakes.memory_leases import MemoryLeases
from tests.fakes.memory_store import MemoryStore

TIMES = LeaseTimes(duration=6, renew_interval=0.02, scan_interval=0.02, settle_timeout=0.2)


class Wire:
    """Signals between the queues of a test; `cut` loses every one of them."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.cut = False
        self.sent: list[Signal] = []

    def end(self) -> "End":
        self.ends.append(End(self))
        return self.ends[-1]


class End:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.hear: Callable[[Signal], None] | None = None

    def send(self, signal: Signal) -> None:
        self._wire.sent.append(signal)
        for end in () if self._wire.cut else self._wire.ends:
            if end is not self and end.hear is not None:
                asyncio.get_running_loop().call_soon(end.hear, signal)

    def listen(self, hear: Callable[[Signal], None]) -> None:
        self.hear = hear


class Worker:
    """A `RunWorker` over the store: an attempt reads the words, lasts until it is let go, and writes `done`."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self.name = name
        self.attempts: list[Attempt] = []
        self.forgotten: list[str] = []
        self.kills = 0

    async def work(self, session_id: str, attempt: Attempt) -> None:
        world = self._world
        self.attempts.append(attempt)
        state = await world.store.load_checkpoint(session_id)
        words = await world.store.unread_messages(session_id, after=state.last_read_message)
        consumed = words[-1].number if words else state.last_read_message
        running = world.running.setdefault(session_id, [])
        running.append(self.name)
        assert len(running) == 1, "two runs beside each other"
        world.changed.set()
        try:
            await world.gate.wait()
        finally:
            running.remove(self.name)
            world.changed.set()
        run = Checkpoint(last_read_message=consumed)
        change = Commit(
            timestamp=1,
            events=[DoneEvent()],
            checkpoint=run,
            ends_after_message=consumed,
            fencing_token=attempt.fencing_token,
        )
        await world.store.commit(session_id, change)

    async def kill_open_calls(self, session_id: str) -> None:
        self.kills += 1

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        state = await self._world.store.load_checkpoint(session_id)
        words = await self._world.store.unread_messages(session_id, after=state.last_read_message)
        told = [word.number for word in words if word.number <= up_to]
        if not told and (await self._world.store.get(session_id, owner="me")).status == "completed":
            return
        consumed = told[-1] if told else state.last_read_message
        change = Commit(
            timestamp=1,
            events=[DoneEvent()],
            checkpoint=Checkpoint(last_read_message=consumed),
            ends_after_message=consumed,
            fencing_token=fencing_token,
        )
        await self._world.store.commit(session_id, change)

    async def release(self, session_id: str) -> None:
        self.forgotten.append(session_id)


class World:
    """Any number of processes over one store."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = MemoryStore()
        self.leases = MemoryLeases(self.store, clock=lambda: self.now)
        self.wire = Wire()
        self.gate = asyncio.Event()
        self.changed = asyncio.Event()
        self.running: dict[str, list[str]] = {}
        self.queues: list[LeasedRunQueue] = []

    def process(self, name: str, *, takes_runs: bool = True) -> tuple[LeasedRunQueue, Worker]:
        worker = Worker(self, name)
        queue = LeasedRunQueue(worker, self.leases, self.wire.end(), holder=name, takes_runs=takes_runs, times=TIMES)
        queue.start()
        self.queues.append(queue)
        return queue, worker

    async def die(self, queue: LeasedRunQueue) -> None:
        """As SIGKILL would end it: nothing is written, nothing given back."""
        for task in (*queue._background, *queue._held._tasks):
            task.cancel()
        queue._held._leases = DeadStore()  # type: ignore[assignment]
        queue._leases = DeadStore()  # type: ignore[assignment]
        drivers = queue._held._supervisor
        for run in list(drivers._runs.values()):
            assert run.task is not None
            if run.attempt is not None:
                run.attempt.cancel()
            run.task.cancel()
            await asyncio.wait([run.task, *([run.attempt] if run.attempt else [])])

    async def say(self, queue: LeasedRunQueue, session_id: str = "s") -> int:
        receipt = await self.store.append_user_message(session_id, "words", at=1, key=None)
        await queue.wake(session_id, up_to=receipt.number)
        return receipt.number

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not true():
                await asyncio.sleep(0.002)

    def runs(self, session_id: str = "s") -> list[str]:
        return self.running.get(session_id, [])

    def types(self, session_id: str = "s") -> list[str]:
        return [record.type for _, record in self.store._kept[session_id].events]


class DeadStore:
    """What a dead process reaches of the store."""

    def __getattr__(self, name: str) -> object:
        async def refuse(*_: object, **__: object) -> None:
            raise StoreUnavailable("dead")

        return refuse


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.store.create("s", owner="me", at=1)
    yield world
    world.gate.set()
    for queue in world.queues:
        await queue.close()


@pytest.fixture
def lost_signals(world: World) -> Iterator[None]:
    world.wire.cut = True
    yield


async def test_words_said_to_a_process_that_takes_no_runs_are_worked_on_by_one_that_does(world: World) -> None:
    api, _ = world.process("api", takes_runs=False)
    world.process("worker")
    await world.say(api)
    await world.until(world.runs)
    world.gate.set()
    await world.until(lambda: world.types() == ["message", "done"])
    await world.until(lambda: not world.leases._rows["s"].holder)


async def test_a_hundred_wakes_in_five_processes_are_one_run(world: World) -> None:
    processes = [world.process(f"w{n}") for n in range(5)]
    receipt = await world.store.append_user_message("s", "words", at=1, key=None)
    await asyncio.gather(*(queue.wake("s", up_to=receipt.number) for queue, _ in processes for _ in range(20)))
    await world.until(world.runs)
    world.gate.set()
    await world.until(lambda: "done" in world.types())
    assert sum(len(worker.attempts) for _, worker in processes) == 1


async def test_new_words_interrupt_the_run_in_another_process(world: World) -> None:
    first, worker = world.process("worker")
    await world.say(first)
    await world.until(world.runs)
    api, _ = world.process("api", takes_runs=False)
    await world.say(api)
    await world.until(lambda: len(worker.attempts) == 2)
    assert worker.kills == 1


@pytest.mark.usefixtures("lost_signals")
async def test_words_and_stops_arrive_also_when_every_signal_is_lost(world: World) -> None:
    _, worker = world.process("worker")
    api, _ = world.process("api", takes_runs=False)
    await world.say(api)
    await world.until(world.runs)
    up_to = await world.say(api)
    await world.until(lambda: len(worker.attempts) == 2)
    await api.stop_run("s", up_to=up_to)
    assert world.types() == ["message", "message", "done"]
    assert not world.runs()
    assert len(worker.attempts) == 2, "what was heard once is not heard again"


async def test_a_stop_reaches_a_run_in_another_process_and_returns_when_done_is_written(world: World) -> None:
    first, _ = world.process("worker")
    up_to = await world.say(first)
    await world.until(world.runs)
    api, _ = world.process("api", takes_runs=False)
    await api.stop_run("s", up_to=up_to)
    assert world.types() == ["message", "done"]
    assert await world.leases.requested_stop("s") is None
    await api.stop_run("s", up_to=up_to)
    assert world.types() == ["message", "done"]


async def test_a_process_that_takes_no_runs_ends_one_that_nobody_has(world: World) -> None:
    api, here = world.process("api", takes_runs=False)
    up_to = await world.say(api)
    await api.stop_run("s", up_to=up_to)
    assert world.types() == ["message", "done"]
    assert here.attempts == []


async def test_words_that_came_after_the_stop_are_left_to_a_worker(world: World) -> None:
    api, here = world.process("api", takes_runs=False)
    up_to = await world.say(api)
    await world.say(api)
    await api.stop_run("s", up_to=up_to)
    assert "done" not in world.types()
    assert here.attempts == []
    world.process("worker")
    await world.until(world.runs)


async def test_a_dead_workers_run_goes_on_elsewhere_once_its_lease_is_over_and_not_before(world: World) -> None:
    first, _ = world.process("first")
    await world.say(first)
    await world.until(world.runs)
    _, second = world.process("second")
    await world.die(first)
    world.now += TIMES.duration - 0.1
    assert await world.leases.list_claimable(limit=9) == []
    world.now += 0.2
    await world.until(lambda: world.runs() == ["second"])
    assert [attempt.crashed for attempt in second.attempts] == [True]


async def test_a_worker_that_lives_keeps_its_run_for_ever(world: World) -> None:
    first, _ = world.process("first")
    await world.say(first)
    await world.until(world.runs)
    _, second = world.process("second")
    for _ in range(20):
        renewed = world.leases._rows["s"].until
        world.now += TIMES.duration / 2
        await world.until(lambda renewed=renewed: world.leases._rows["s"].until > renewed)
    assert world.runs() == ["first"]
    assert second.attempts == []


async def test_what_a_worker_writes_that_lost_its_lease_is_refused(world: World) -> None:
    first, worker = world.process("first")
    await world.say(first)
    await world.until(world.runs)
    fencing_token = worker.attempts[0].fencing_token
    await world.leases.take_over("s", holder="another", seconds=9)
    with pytest.raises(LeaseLost):
        await world.store.commit("s", Commit(timestamp=1, events=[DoneEvent()], fencing_token=fencing_token))
    await world.until(lambda: not world.runs())
    assert world.types() == ["message"]
    await world.until(lambda: worker.forgotten == ["s"])
    assert world.leases._rows["s"].holder == "another"


async def test_a_process_that_shuts_down_hands_its_run_over_at_once(world: World) -> None:
    first, _ = world.process("first")
    await world.say(first)
    await world.until(world.runs)
    _, second = world.process("second")
    await first.close()
    await world.until(lambda: world.runs() == ["second"])
    assert [attempt.crashed for attempt in second.attempts] == [False]
    up_to = await world.store.append_user_message("s", "late", at=1, key=None)
    await first.wake("s", up_to=up_to.number)
    await world.until(lambda: len(second.attempts) == 2)


async def test_words_that_come_while_a_run_ends_are_worked_on(world: World) -> None:
    queue, worker = world.process("worker")
    world.gate.set()
    for count in range(1, 40):
        await world.say(queue)
        await world.until(lambda count=count: world.types().count("message") == count)
    await world.until(lambda: world.types()[-1] == "done")
    state = await world.store.load_checkpoint("s")
    assert await world.store.unread_messages("s", after=state.last_read_message) == []
    assert worker.attempts


async def test_a_deletion_ends_the_run_wherever_it_goes_and_nobody_begins_it_anew(world: World) -> None:
    first, worker = world.process("first")
    await world.say(first)
    await world.until(world.runs)
    api, _ = world.process("api", takes_runs=False)
    _, third = world.process("third")
    await api.cancel_run("s")
    assert not world.runs()
    assert worker.forgotten == ["s"]
    await world.store.append_user_message("s", "meanwhile", at=1, key=None)
    assert await world.leases.list_claimable(limit=9) == []
    await world.store.delete("s", owner="me")
    await api.cancel_run("s")
    assert third.attempts == []


async def test_a_deletion_that_failed_leaves_a_run_that_goes_on(world: World) -> None:
    queue, worker = world.process("worker")
    await world.say(queue)
    await world.until(world.runs)
    await queue.cancel_run("s")
    await queue.wake("s", up_to=1)
    world.now += TIMES.duration + 1
    await world.until(world.runs)
    assert len(worker.attempts) == 2


async def test_runs_rest_while_the_store_is_away_and_go_on_by_themselves(world: World) -> None:
    queue, worker = world.process("worker")
    await world.say(queue)
    await world.until(world.runs)
    world.store.trouble = "away"
    world.gate.set()
    await world.until(lambda: not world.runs())
    world.now += 2 * TIMES.duration
    world.store.trouble = None
    await world.until(lambda: world.types() == ["message", "done"])
    assert not any(attempt.crashed for attempt in worker.attempts)
    await world.until(lambda: not world.leases._rows["s"].holder)


async def test_a_run_whose_worker_died_while_the_store_was_away_is_taken_soon_after(world: World) -> None:
    queue, _ = world.process("worker")
    await world.say(queue)
    await world.until(world.runs)
    _, other = world.process("other")
    world.store.trouble = "away"
    await world.die(queue)
    world.now += 2 * TIMES.duration
    world.store.trouble = None
    await world.until(lambda: [attempt.crashed for attempt in other.attempts] == [True])


async def test_a_lease_that_could_not_be_given_back_is_given_back_later(world: World) -> None:
    queue, _ = world.process("worker")
    world.gate.set()
    release = world.leases.release
    failures = iter([True, True])

    async def fail_twice(lease: object) -> bool:
        if next(failures, False):
            raise StoreUnavailable("away")
        return await release(lease)  # type: ignore[arg-type]

    world.leases.release = fail_twice  # type: ignore[method-assign, assignment]
    await world.say(queue)
    await world.until(lambda: "done" in world.types())
    await world.until(lambda: not world.leases._rows["s"].holder)


async def test_a_lease_whose_grant_was_never_heard_of_is_given_back(world: World) -> None:
    queue, _ = world.process("worker")
    await world.store.create("t", owner="me", at=1)
    await world.say(queue)
    await world.until(world.runs)
    await world.leases.acquire("t", holder="worker", seconds=6)
    await world.until(lambda: not world.leases._rows["t"].holder)
    assert world.runs() == ["worker"]


async def test_a_stop_whose_worker_dies_over_it_is_carried_out_by_who_asked(world: World) -> None:
    first, _ = world.process("first")
    up_to = await world.say(first)
    await world.until(world.runs)
    api, _ = world.process("api", takes_runs=False)
    await world.die(first)
    stopping = asyncio.create_task(api.stop_run("s", up_to=up_to))
    await world.until(lambda: world.leases._rows["s"].stop_up_to == up_to)
    world.now += TIMES.duration + 1
    await stopping
    assert world.types() == ["message", "done"]
    await world.until(lambda: world.leases._rows["s"].stop_up_to is None)


async def test_a_stop_that_nobody_waits_for_any_more_is_carried_out_all_the_same(world: World) -> None:
    await world.store.append_user_message("s", "words", at=1, key=None)
    await world.leases.acquire("s", holder="dead", seconds=6)
    await world.leases.request_stop("s", up_to=1)
    world.now += 7
    _, worker = world.process("worker")
    await world.until(lambda: world.types() == ["message", "done"])
    assert worker.attempts == []


async def test_a_stop_that_a_shutdown_forestalls_is_carried_out_by_another_process(world: World) -> None:
    first, worker = world.process("first")
    being_cut = asyncio.Event()

    async def slow_to_end(session_id: str, attempt: Attempt) -> None:
        world.running["s"] = ["first"]
        try:
            await asyncio.Event().wait()
        finally:
            being_cut.set()
            await asyncio.Event().wait()  # until it is cut once more, by the shutdown

    worker.work = slow_to_end  # type: ignore[method-assign]
    up_to = await world.say(first)
    await world.until(world.runs)
    api, _ = world.process("api", takes_runs=False)
    stopping = asyncio.create_task(api.stop_run("s", up_to=up_to))
    await being_cut.wait()
    await first.close()
    async with asyncio.timeout(30):
        await stopping
    assert world.types() == ["message", "done"]


async def test_a_stop_that_is_asked_again_after_its_answer_is_answered_again(world: World) -> None:
    """Words came after it, so that the run goes on; who asked had looked for the answer a moment too early."""
    first, worker = world.process("first")
    up_to = await world.say(first)
    await world.until(world.runs)
    await world.store.append_user_message("s", "newer", at=1, key=None)
    api, _ = world.process("api", takes_runs=False)
    await api.stop_run("s", up_to=up_to)
    await world.until(world.runs)
    await world.leases.request_stop("s", up_to=up_to)
    await world.until(lambda: world.leases._rows["s"].stop_up_to is None)
    assert world.runs() == ["first"]
    assert [attempt.reason for attempt in worker.attempts].count(STOPPED) == 1
    assert "done" not in world.types()


async def test_the_client_that_goes_away_does_not_take_the_stop_with_it(world: World) -> None:
    queue, worker = world.process("worker")
    entered, let_go = asyncio.Event(), asyncio.Event()
    stop = worker.finish_stopped

    async def slow(session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        entered.set()
        await let_go.wait()
        await stop(session_id, up_to=up_to, fencing_token=fencing_token)

    worker.finish_stopped = slow  # type: ignore[method-assign]
    await world.store.append_user_message("s", "words", at=1, key=None)
    asking = asyncio.create_task(queue.stop_run("s", up_to=1))
    await entered.wait()
    asking.cancel()
    await asyncio.wait([asking])
    let_go.set()
    await world.until(lambda: world.types() == ["message", "done"])


async def test_a_fault_of_ours_is_tried_again_without_a_tight_circle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.infrastructure.queue.supervisor.FAULT_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("app.infrastructure.queue.leases.FAULT_PAUSE_SECONDS", 0.05)
    queue, worker = world.process("worker")
    failing = [RuntimeError("bug")]
    work = worker.work

    async def broken(session_id: str, attempt: Attempt) -> None:
        if failing:
            raise failing.pop()
        await work(session_id, attempt)

    async def bad_stop(session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        raise RuntimeError("bug")

    worker.work = broken  # type: ignore[method-assign]
    worker.finish_stopped = bad_stop  # type: ignore[method-assign]
    up_to = await world.say(queue)
    await world.until(world.runs)
    with pytest.raises(StoreUnavailable):
        await queue.stop_run("s", up_to=up_to)
    await world.until(lambda: len(worker.attempts) >= 2)


async def test_an_attempt_that_fails_again_and_again_is_given_pauses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.infrastructure.queue.supervisor.FAULT_PAUSE_SECONDS", 0.2)
    queue, worker = world.process("worker")
    began: list[float] = []

    async def broken(session_id: str, attempt: Attempt) -> None:
        began.append(asyncio.get_running_loop().time())
        raise RuntimeError("bug")

    worker.work = broken  # type: ignore[method-assign]
    await world.say(queue)
    await world.until(lambda: len(began) == 3)
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(began))


async def test_superseded_words_start_the_run_again_here(world: World) -> None:
    queue, worker = world.process("worker")
    await world.say(queue)
    await world.until(world.runs)
    await world.store.append_user_message("s", "unheard", at=1, key=None)
    world.gate.set()
    await world.until(lambda: "done" in world.types())
    assert len(worker.attempts) == 2
    with pytest.raises(Superseded):
        await world.store.commit(
            "s", Commit(timestamp=1, events=[MessageEvent(role="user", content="")], ends_after_message=1)
        )
