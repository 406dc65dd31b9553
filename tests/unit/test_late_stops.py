"""A stop that is heard late, or twice, ends what was going when the user said it, and nothing that began after it."""

import pytest

from app.application.services.run_worker import PlanActWorker
from app.domain.errors import Superseded
from app.domain.models.event import DoneEvent
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.services.flows.plan_act import FlowDependencies
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory.feed import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import ScriptedLLM

AT_WORK = Plan(goal="g", steps=(Step(id="1", description="one", status="running"),))


@pytest.fixture
async def store() -> MemoryStore:
    """A session whose first run has ended (with event 2), and whose second one, of the words of event 3, is at work."""
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "first", at=1, key=None)
    await store.commit("s", Commit(timestamp=1, events=[DoneEvent()], checkpoint=Checkpoint(last_read_message=1)))
    await store.append_user_message("s", "second", at=1, key=None)
    await store.commit(
        "s", Commit(timestamp=1, checkpoint=Checkpoint(phase="executing", last_read_message=3, plan=AT_WORK))
    )
    return store


def worker(store: MemoryStore) -> PlanActWorker:
    return PlanActWorker(
        dependencies=FlowDependencies(event_log=store, feed=MemoryFeed(), model=ScriptedLLM([]), tools=EXECUTING),
        sandboxes=MemorySandboxProvider(),
        browsers=MemoryBrowsers(),
        screenshots=MemoryScreenshotKeeper(),
        engine=FakeSearch(),
    )


async def test_a_stop_of_earlier_words_leaves_the_run_of_later_ones_alone(store: MemoryStore) -> None:
    with pytest.raises(Superseded):
        await worker(store).finish_stopped("s", up_to=2, fencing_token=None)
    assert (await store.load_checkpoint("s")).phase == "executing"
    assert (await store.get("s", owner="")).status == "active"


async def test_a_stop_of_the_run_that_goes_ends_it(store: MemoryStore) -> None:
    await worker(store).finish_stopped("s", up_to=3, fencing_token=None)
    assert (await store.load_checkpoint("s")).phase == "idle"
    assert (await store.get("s", owner="")).status == "completed"


async def test_a_stop_of_earlier_words_is_nothing_once_everything_has_ended(store: MemoryStore) -> None:
    await worker(store).finish_stopped("s", up_to=3, fencing_token=None)
    before = (await store.get("s", owner="")).last_event_number
    await worker(store).finish_stopped("s", up_to=2, fencing_token=None)
    assert (await store.get("s", owner="")).last_event_number == before
