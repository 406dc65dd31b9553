"""A run that kills every process ends with `error`; a run that makes progress between crashes does not."""

import json
from collections.abc import Callable

from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.services.flows.plan_act import CRASHED, MAX_CRASHES
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import (
    RecordedRequest,
    ScriptedLLM,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import make_worker


class ProcessDied(BaseException):
    """Ends an attempt as the death of its process would: nothing is written after it."""


class CrashingRun:
    """A session whose run is carried by one process after another."""

    def __init__(self, respond: Callable[[RecordedRequest], ModelReply]) -> None:
        self.store = MemoryStore()
        self.worker = make_worker(self.store, ScriptedLLM(respond))

    async def send_message(self) -> None:
        await self.store.append_user_message("s", "do it", at=1, key=None)

    async def survives_attempt(self, *, crashed: bool = True) -> bool:
        """Make one attempt. Return False if its process died."""
        try:
            await self.worker.work("s", Attempt(reason=CRASHED, crashed=crashed))
        except ProcessDied:
            return False
        return True

    async def last_event(self) -> dict[str, str]:
        record = (await self.store.read("s", after=0, limit=10_000))[-1]
        return {"event": record.type, **json.loads(record.data)}


async def start_run(respond: Callable[[RecordedRequest], ModelReply]) -> CrashingRun:
    run = CrashingRun(respond)
    await run.store.create("s", owner="", at=1)
    await run.send_message()
    return run


def die(_: RecordedRequest) -> ModelReply:
    raise ProcessDied


async def test_run_that_crashes_while_planning_ends_with_error_after_max_crashes() -> None:
    run = await start_run(die)
    assert not await run.survives_attempt(crashed=False)
    for _ in range(MAX_CRASHES):
        assert not await run.survives_attempt()
    assert await run.survives_attempt()
    last = await run.last_event()
    assert last["event"] == "error"
    assert str(MAX_CRASHES) in last["error"]


async def test_run_that_crashes_before_its_next_call_ends_with_error_after_max_crashes() -> None:
    run = await start_run(lambda request: creates_plan("one") if request.kind == "planning" else die(request))
    assert not await run.survives_attempt(crashed=False)
    crashes = 0
    while not await run.survives_attempt():
        crashes += 1
    assert crashes == MAX_CRASHES
    assert (await run.last_event())["event"] == "error"


async def test_run_with_progress_between_crashes_is_never_given_up() -> None:
    executing_requests = 0

    def crash_every_other_time(request: RecordedRequest) -> ModelReply:
        nonlocal executing_requests
        if request.kind == "planning":
            return creates_plan("one")
        if request.kind == "answering":
            return says("Done.")
        executing_requests += 1
        if executing_requests > 8 * MAX_CRASHES:
            return completes_step()
        if executing_requests % 2:
            return runs_command("work")
        raise ProcessDied

    run = await start_run(crash_every_other_time)
    crashes = 0
    while not await run.survives_attempt(crashed=crashes > 0):
        crashes += 1
    assert crashes > 3 * MAX_CRASHES
    assert (await run.last_event())["event"] == "done"
    assert (await run.store.load_checkpoint("s")).crash_count == 0


async def test_message_after_a_given_up_run_starts_with_a_crash_count_of_zero() -> None:
    crashing = True
    run = await start_run(lambda request: die(request) if crashing else creates_plan())
    while not await run.survives_attempt():
        pass
    assert (await run.last_event())["event"] == "error"
    crashing = False
    await run.send_message()
    assert await run.survives_attempt(crashed=False)
    assert (await run.last_event())["event"] == "done"
