"""The usage of a run and of its session counts every reply once, however the run ends or is interrupted."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from app.domain.errors import ModelFailure, StoreUnavailable
from app.domain.external.run_queue import Attempt
from app.domain.models.event import EventRecord
from app.domain.repositories.event_log import Commit
from app.infrastructure.queue.supervisor import InlineRunQueue
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import (
    RecordedRequest,
    ScriptedLLM,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import make_worker
from tests.support.eventually import eventually


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "first", at=1, key=None)
    return store


async def ending(store: MemoryStore) -> tuple[str, int, int]:
    """Return the type of the last event, and the model calls that it and the session show."""
    last = (await store.read("s", after=0, limit=1_000))[-1]
    data: dict[str, Any] = orjson.loads(last.data)
    return last.type, data["usage"]["model_calls"], (await store.get("s", owner="")).usage.calls


async def work(store: MemoryStore, model: ScriptedLLM) -> None:
    await make_worker(store, model).work("s", Attempt(reason="", crashed=False, fencing_token=None))


async def test_finished_run_counts_every_reply(store: MemoryStore) -> None:
    model = ScriptedLLM([creates_plan("a"), runs_command("ls"), completes_step(), says("Done.")])
    await work(store, model)
    assert await ending(store) == ("done", 4, 4)


async def test_run_without_steps_counts_its_reply(store: MemoryStore) -> None:
    await work(store, ScriptedLLM([creates_plan(message="Hello.")]))
    assert await ending(store) == ("done", 1, 1)


async def test_question_counts_the_replies_so_far_and_the_next_run_begins_at_zero(store: MemoryStore) -> None:
    asks = calls(("message_ask_user", {"text": "Which?"}))
    await work(store, ScriptedLLM([creates_plan("a"), asks]))
    assert await ending(store) == ("wait", 2, 2)
    await store.append_user_message("s", "this one", at=1, key=None)
    await work(store, ScriptedLLM([completes_step(), says("Done.")]))
    assert await ending(store) == ("done", 2, 4)


async def test_failure_counts_replies_that_no_commit_had_stored(store: MemoryStore) -> None:
    await work(store, ScriptedLLM([creates_plan("a"), says("a"), says("b"), ModelFailure("away")]))
    assert await ending(store) == ("error", 3, 3)


async def test_stop_counts_replies_that_no_commit_had_stored(store: MemoryStore) -> None:
    asked_again = asyncio.Event()

    async def hang(_: RecordedRequest) -> BaseException:
        asked_again.set()
        await asyncio.Event().wait()
        raise AssertionError

    queue = InlineRunQueue(make_worker(store, ScriptedLLM([creates_plan("a"), says("a"), says("b"), hang])))
    await queue.wake("s", up_to=1, owner="")
    await asked_again.wait()
    await queue.stop_run("s", up_to=(await store.get("s", owner="")).last_event_number)
    assert await ending(store) == ("done", 3, 3)
    await queue.close()


async def test_interrupt_continues_the_count(store: MemoryStore) -> None:
    sandboxes = MemorySandboxProvider()
    (await sandboxes.acquire("s")).script("hang", hangs=True)
    replies = [creates_plan("a"), says("a"), runs_command("hang"), creates_plan(message="Hello.")]
    model = ScriptedLLM(replies)
    queue = InlineRunQueue(make_worker(store, model, sandboxes=sandboxes))
    await queue.wake("s", up_to=1, owner="")
    await eventually(lambda: len(model.requests) == 3)
    await store.append_user_message("s", "second", at=1, key=None)
    await queue.wake("s", up_to=2, owner="")
    await eventually(lambda: not queue.active)
    assert await ending(store) == ("done", 4, 4)
    await queue.close()


async def test_message_during_the_last_call_loses_no_usage(store: MemoryStore) -> None:
    async def answer(_: RecordedRequest) -> Any:
        await store.append_user_message("s", "second", at=1, key=None)
        return says("Done.")

    replies = [creates_plan("a"), completes_step(), answer, creates_plan(message="Hello.")]
    queue = InlineRunQueue(make_worker(store, ScriptedLLM(replies)))
    await queue.wake("s", up_to=1, owner="")
    await eventually(lambda: not queue.active)
    assert await ending(store) == ("done", 4, 4)
    await queue.close()


class ForgetfulStore(MemoryStore):
    """A store whose every second commit is stored but reported as failed."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        records = await super().commit(session_id, commit)
        self.commits += 1
        if self.commits % 2:
            raise StoreUnavailable("the connection broke")
        return records


async def test_repeated_commit_counts_its_replies_once() -> None:
    store = ForgetfulStore()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "first", at=1, key=None)
    await work(store, ScriptedLLM([creates_plan("a"), completes_step(), says("Done.")]))
    assert await ending(store) == ("done", 3, 3)


async def test_stop_after_an_unconfirmed_commit_counts_its_replies_once() -> None:
    store = ForgetfulStore()
    await store.create("s", owner="", at=1)
    await store.append_user_message("s", "first", at=1, key=None)
    queue = InlineRunQueue(make_worker(store, ScriptedLLM([creates_plan("a"), completes_step(), says("Done.")])))
    await queue.wake("s", up_to=1, owner="")
    await eventually(lambda: store.commits == 1)
    while True:
        try:
            await queue.stop_run("s", up_to=(await store.get("s", owner="")).last_event_number)
            break
        except StoreUnavailable:
            continue
    await eventually(lambda: not queue.active)
    kind, run, session = await ending(store)
    assert (kind, run) == ("done", session)
    await queue.close()


async def test_attempt_after_a_crash_continues_the_count(store: MemoryStore) -> None:
    model = ScriptedLLM([creates_plan("a"), runs_command("ls"), asyncio.CancelledError()])
    with pytest.raises(asyncio.CancelledError):
        await work(store, model)
    await make_worker(store, ScriptedLLM([completes_step(), says("Done.")])).work(
        "s", Attempt(reason="", crashed=True, fencing_token=None)
    )
    assert await ending(store) == ("done", 4, 4)
