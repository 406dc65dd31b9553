"""A pending commit is retried while the store is unavailable, and a cancelled run does not wait for the store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from app.domain.errors import LeaseLost, StaleCheckpoint, StoreUnavailable
from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.event import EventRecord, ToolCalledEvent
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.domain.services.agents import checkpointer
from app.domain.services.agents.checkpointer import PendingCommit
from app.domain.services.flows.plan_act import CRASHED
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import RecordedRequest, ScriptedLLM, creates_plan, runs_command
from tests.support.agent_runs import make_worker
from tests.support.eventually import eventually

COMMIT = Commit(timestamp=1, checkpoint=Checkpoint(revision="b"), expected_revision="")
UNAVAILABLE = StoreUnavailable("away")


class FailingStore(MemoryStore):
    """A store whose commits can be delayed with `gate` and fail with the error that `error_for` returns."""

    def __init__(self) -> None:
        super().__init__()
        self.error_for: Callable[[Commit], Exception | None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.attempts = 0

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        self.attempts += 1
        error = self.error_for(commit)
        await self.gate.wait()
        if error is not None:
            raise error
        return await super().commit(session_id, commit)


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FailingStore]:
    monkeypatch.setattr(checkpointer, "_RETRY_SECONDS", 0.001)
    store = FailingStore()
    await store.create("s", owner="", at=1)
    async with asyncio.timeout(20):
        yield store


async def test_commit_is_retried_until_the_store_is_available(store: FailingStore) -> None:
    store.error_for = lambda _: UNAVAILABLE if store.attempts < 5 else None
    await PendingCommit(store, "s", COMMIT).wait()
    assert store.attempts == 5
    assert await store.load_checkpoint("s") == COMMIT.checkpoint


@pytest.mark.parametrize("final", [LeaseLost("lost"), StaleCheckpoint("elsewhere")])
async def test_commit_is_not_retried_after_an_error_that_a_retry_cannot_fix(
    store: FailingStore, final: Exception
) -> None:
    store.error_for = lambda _: UNAVAILABLE if store.attempts < 3 else final
    with pytest.raises(type(final)):
        await PendingCommit(store, "s", COMMIT).wait()
    assert store.attempts == 3


async def test_stop_retrying_raises_the_next_failure(store: FailingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "_RETRY_SECONDS", 3600)
    store.error_for = lambda _: UNAVAILABLE
    pending = PendingCommit(store, "s", COMMIT)
    await eventually(lambda: store.attempts)
    pending.stop_retrying()
    with pytest.raises(StoreUnavailable):
        await pending.wait()
    assert store.attempts <= 2


async def test_cancelled_wait_ends_only_after_the_attempt_in_flight(store: FailingStore) -> None:
    store.gate.clear()
    waiting = asyncio.create_task(PendingCommit(store, "s", COMMIT).wait())
    await eventually(lambda: store.attempts)
    for _ in range(3):
        waiting.cancel()
        await asyncio.sleep(0)
    assert not waiting.done()
    store.gate.set()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert await store.load_checkpoint("s") == COMMIT.checkpoint


async def test_cancelled_run_with_an_unstored_commit_ends_at_once(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer, "_RETRY_SECONDS", 3600)
    store.error_for = lambda commit: (
        UNAVAILABLE if any(isinstance(event, ToolCalledEvent) for event in commit.events) else None
    )

    async def never_reply(_: RecordedRequest) -> ModelReply:
        await asyncio.Event().wait()
        raise AssertionError

    model = ScriptedLLM([creates_plan("one"), runs_command("work"), never_reply])
    await store.append_user_message("s", "do it", at=1, key=None)
    attempt = asyncio.create_task(make_worker(store, model).work("s", Attempt(reason=CRASHED)))
    while len(model.requests) < 3:  # The result of the call waits for the store while the model is asked.
        await asyncio.sleep(0)
    attempt.cancel()
    await asyncio.wait([attempt])
    assert attempt.cancelled()
