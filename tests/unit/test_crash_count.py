"""A run that kills every process that carries it ends in `error`; one whose processes are killed for other reasons
does not."""

import json
from collections.abc import Callable

from app.application.services.run_worker import PlanActWorker
from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.services.flows.plan_act import CRASHED, MAX_CRASHES, FlowDependencies
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory.feed import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import Question, ScriptedLLM, calling, saying

PLAN = calling(
    (
        "create_plan",
        {"title": "T", "message": "M", "goal": "G", "steps": [{"id": "1", "description": "one"}]},
    )
)
SHELL = calling(("shell_exec", {"id": "a", "exec_dir": "~", "command": "work"}))
COMPLETE = calling(("complete_step", {"success": True, "result": "r"}))


class Killed(BaseException):
    """Ends an attempt as the death of its process would: nothing after it is written."""


class Life:
    """A session, and one process after another that carries its run."""

    def __init__(self, turn: Callable[[Question], ModelReply]) -> None:
        async def answer(question: Question) -> ModelReply:
            return turn(question)

        self.store = MemoryStore()
        dependencies = FlowDependencies(
            event_log=self.store, feed=MemoryFeed(), model=ScriptedLLM(answer), tools=EXECUTING
        )
        self.worker = PlanActWorker(
            dependencies=dependencies,
            sandboxes=MemorySandboxProvider(),
            browsers=MemoryBrowsers(),
            screenshots=MemoryScreenshotKeeper(),
            engine=FakeSearch(),
        )

    async def begin(self) -> None:
        await self.store.create("s", owner="", at=1)
        await self.store.append_user_message("s", "do it", at=1, key=None)

    async def attempt(self, *, crashed: bool = True) -> bool:
        """One process's attempt; False when the process died."""
        try:
            await self.worker.work("s", Attempt(reason=CRASHED, crashed=crashed))
        except Killed:
            return False
        return True

    @property
    def last(self) -> dict[str, object]:
        record = self.store._kept["s"].events[-1][1]
        return {"event": record.type, **json.loads(record.data)}


async def test_a_run_that_kills_while_it_plans_is_given_up() -> None:
    def turn(question: Question) -> ModelReply:
        raise Killed

    life = Life(turn)
    await life.begin()
    assert not await life.attempt(crashed=False)
    for _ in range(MAX_CRASHES - 1):
        assert not await life.attempt()
    assert not await life.attempt()
    assert await life.attempt()
    assert life.last["event"] == "error"
    assert str(MAX_CRASHES) in str(life.last["error"])


async def test_a_run_that_kills_whenever_it_is_asked_for_its_next_call_is_given_up() -> None:
    def turn(question: Question) -> ModelReply:
        if question.kind == "planning":
            return PLAN
        raise Killed

    life = Life(turn)
    await life.begin()
    assert not await life.attempt(crashed=False)
    attempts = 0
    while not await life.attempt():
        attempts += 1
    assert attempts == MAX_CRASHES
    assert life.last["event"] == "error"


async def test_a_run_that_gets_on_between_its_deaths_is_never_given_up() -> None:
    asked = 0

    def turn(question: Question) -> ModelReply:
        nonlocal asked
        if question.kind == "planning":
            return PLAN
        if question.kind == "final":
            return saying("Done.")
        asked += 1
        if asked > 8 * MAX_CRASHES:
            return COMPLETE
        if asked % 2:
            return SHELL
        raise Killed

    life = Life(turn)
    await life.begin()
    deaths = 0
    while not await life.attempt(crashed=deaths > 0):
        deaths += 1
    assert deaths > 3 * MAX_CRASHES
    assert life.last["event"] == "done"
    assert (await life.store.load_checkpoint("s")).crash_count == 0


async def test_the_next_message_begins_the_count_anew() -> None:
    kills = True

    def turn(question: Question) -> ModelReply:
        if kills:
            raise Killed
        return calling(("create_plan", {"title": "T", "message": "Answer", "goal": "", "steps": []}))

    life = Life(turn)
    await life.begin()
    while not await life.attempt():
        pass
    assert life.last["event"] == "error"
    kills = False
    await life.store.append_user_message("s", "again", at=2, key=None)
    assert await life.attempt(crashed=False)
    assert life.last["event"] == "done"
