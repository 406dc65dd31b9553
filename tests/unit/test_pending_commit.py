"""A change on its way into a event_log that is away for a while."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from app.application.services.run_worker import PlanActWorker
from app.domain.errors import LeaseLost, StaleCheckpoint, StoreUnavailable
from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.event import EventRecord, ToolCalledEvent
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.services.agents import checkpointer
from app.domain.services.agents.checkpointer import PendingCommit
from app.domain.services.flows.plan_act import CRASHED, FlowDependencies
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory.feed import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import Question, ScriptedLLM, calling

CHANGE = Commit(timestamp=1, checkpoint=Checkpoint(revision="b"), expected_revision="")
AWAY = StoreUnavailable("away")
PLAN = calling(
    ("create_plan", {"title": "T", "message": "M", "goal": "G", "steps": [{"id": "1", "description": "one"}]})
)
WORK = calling(("shell_exec", {"id": "a", "exec_dir": "~", "command": "work"}))


class Store(MemoryStore):
    """Fails with what `fails` says of a change. `gate`: no write gets further before it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Callable[[Commit], Exception | None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.tries = 0

    async def commit(self, session_id: str, change: Commit) -> Sequence[EventRecord]:
        self.tries += 1
        error = self.fails(change)
        await self.gate.wait()
        if error is not None:
            raise error
        return await super().commit(session_id, change)


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(checkpointer, "_RETRY_SECONDS", 0.001)
    store = Store()
    await store.create("s", owner="", at=1)
    async with asyncio.timeout(20):
        yield store


async def test_it_is_tried_until_it_is_stored(store: Store) -> None:
    store.fails = lambda _: AWAY if store.tries < 5 else None
    await PendingCommit(store, "s", CHANGE).wait()
    assert store.tries == 5
    assert await store.load_checkpoint("s") == CHANGE.checkpoint


@pytest.mark.parametrize("final", [LeaseLost("lost"), StaleCheckpoint("elsewhere")])
async def test_what_no_time_mends_is_not_tried_again(store: Store, final: Exception) -> None:
    store.fails = lambda _: AWAY if store.tries < 3 else final
    with pytest.raises(type(final)):
        await PendingCommit(store, "s", CHANGE).wait()
    assert store.tries == 3


async def test_whoever_is_in_a_hurry_hears_of_the_next_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "_RETRY_SECONDS", 3600)
    store.fails = lambda _: AWAY
    change = PendingCommit(store, "s", CHANGE)
    while not store.tries:
        await asyncio.sleep(0)
    change.stop_retrying()
    with pytest.raises(StoreUnavailable):
        await change.wait()
    assert store.tries <= 2


async def test_a_try_that_is_under_way_when_the_run_is_cut_short_is_waited_for(store: Store) -> None:
    store.gate.clear()
    finishing = asyncio.create_task(PendingCommit(store, "s", CHANGE).wait())
    while not store.tries:
        await asyncio.sleep(0)
    for _ in range(3):
        finishing.cancel()
        await asyncio.sleep(0)
    assert not finishing.done()
    store.gate.set()
    await asyncio.wait([finishing])
    assert finishing.cancelled()
    assert await store.load_checkpoint("s") == CHANGE.checkpoint


async def test_a_run_that_waits_for_the_store_is_cut_short_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "_RETRY_SECONDS", 3600)
    store.fails = lambda change: AWAY if any(isinstance(event, ToolCalledEvent) for event in change.events) else None

    async def thinks_on(_: Question) -> ModelReply:
        await asyncio.Event().wait()
        raise AssertionError

    model = ScriptedLLM([PLAN, WORK, thinks_on])
    dependencies = FlowDependencies(event_log=store, feed=MemoryFeed(), model=model, tools=EXECUTING)
    worker = PlanActWorker(
        dependencies=dependencies,
        sandboxes=MemorySandboxProvider(),
        browsers=MemoryBrowsers(),
        screenshots=MemoryScreenshotKeeper(),
        engine=FakeSearch(),
    )
    await store.append_user_message("s", "do it", at=1, key=None)
    attempt = asyncio.create_task(worker.work("s", Attempt(reason=CRASHED)))
    while len(model.asked) < 3:  # what the call came to waits for the store, and the model is asked meanwhile
        await asyncio.sleep(0)
    attempt.cancel()
    await asyncio.wait([attempt])
    assert attempt.cancelled()
