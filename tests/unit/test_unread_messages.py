"""However much the user says before the agent reads it: no change is larger than a store takes, and nothing is lost."""

from collections.abc import AsyncIterator, Sequence

import pytest

from app.application.services.run_worker import PlanActWorker
from app.domain.errors import TooLarge
from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.event import EventRecord
from app.domain.repositories.event_log import Commit
from app.domain.services.flows.plan_act import CRASHED, FlowDependencies
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory.feed import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import ScriptedLLM, calling, saying

MESSAGES = 45
WORDS = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 100_000
TOGETHER = 12 * 2**20
"""Bytes that MongoDB's store takes at once."""

STEPS = [{"id": "1", "description": "one"}]
PLAN = calling(("create_plan", {"title": "T", "message": "M", "goal": "G", "steps": STEPS}))
NO_PLAN = calling(("create_plan", {"title": "T", "message": "M", "goal": "", "steps": []}))
ASK = calling(("message_ask_user", {"text": "?"}))
COMPLETE = calling(("complete_step", {"success": True, "result": "r"}))


class Store(MemoryStore):
    async def commit(self, session_id: str, change: Commit) -> Sequence[EventRecord]:
        if len(repr((change.messages, change.checkpoint, change.events)).encode()) > TOGETHER:
            raise TooLarge("too large")
        return await super().commit(session_id, change)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store()
    await store.create("s", owner="", at=1)
    yield store
    said = [message for message in await store.load_transcript("s", "planner") if WORDS in str(message)]
    assert len(said) == MESSAGES
    assert (await store.get("s", owner="")).status == "completed"
    assert [record.type for record in await store.read("s", after=0, limit=999)][-1] == "done"


async def say(store: Store) -> int:
    numbers = [(await store.append_user_message("s", WORDS, at=1, key=None)).number for _ in range(MESSAGES)]
    return numbers[-1]


def worker(store: Store, *script: ModelReply) -> PlanActWorker:
    return PlanActWorker(
        dependencies=FlowDependencies(event_log=store, feed=MemoryFeed(), model=ScriptedLLM(script), tools=EXECUTING),
        sandboxes=MemorySandboxProvider(),
        browsers=MemoryBrowsers(),
        screenshots=MemoryScreenshotKeeper(),
        engine=FakeSearch(),
    )


async def test_a_run_reads_all_of_it(store: Store) -> None:
    await say(store)
    await worker(store, NO_PLAN).work("s", Attempt(reason=CRASHED))


async def test_a_question_may_be_answered_with_so_much(store: Store) -> None:
    await store.append_user_message("s", "do it", at=1, key=None)
    await worker(store, PLAN, ASK).work("s", Attempt(reason=CRASHED))
    await say(store)
    await worker(store, COMPLETE, saying("the answer")).work("s", Attempt(reason=CRASHED))


async def test_a_stop_ends_the_run_of_it(store: Store) -> None:
    up_to = await say(store)
    await worker(store).finish_stopped("s", up_to=up_to, fencing_token=None)
