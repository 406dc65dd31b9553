"""However much the user writes before the agent reads it, no commit exceeds the store's limit and nothing is lost."""

from collections.abc import AsyncIterator, Sequence

import pytest

from app.domain.errors import TooLarge
from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.event import EventRecord
from app.domain.models.model_profile import ModelProfile
from app.domain.repositories.event_log import Commit
from app.domain.services.flows.plan_act import CRASHED
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import ScriptedLLM, calls, completes_step, creates_plan, says
from tests.support.agent_runs import make_worker

MESSAGE_COUNT = 45
LONG_TEXT = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 100_000
MAX_COMMIT_BYTES = 12 * 2**20
"""The limit of the MongoDB store."""


class LimitedStore(MemoryStore):
    """A store that refuses commits above `MAX_COMMIT_BYTES`."""

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        if len(repr((commit.messages, commit.checkpoint, commit.events)).encode()) > MAX_COMMIT_BYTES:
            raise TooLarge("too large")
        return await super().commit(session_id, commit)


@pytest.fixture
async def store() -> AsyncIterator[LimitedStore]:
    """Yield a store with one session. Afterwards, its run must have ended and the transcript must be complete."""
    store = LimitedStore()
    await store.create("s", owner="", at=1)
    yield store
    stored = [message for message in await store.load_transcript("s", "planner") if LONG_TEXT in str(message)]
    assert len(stored) == MESSAGE_COUNT
    assert (await store.get("s", owner="")).status == "completed"
    assert [record.type for record in await store.read("s", after=0, limit=999)][-1] == "done"


def _model(*script: ModelReply) -> ScriptedLLM:
    """Return a model whose window holds all messages, so that nothing is summarized."""
    return ScriptedLLM(script, profile=ModelProfile(context_tokens=20_000_000))


async def send_long_messages(store: LimitedStore) -> int:
    """Store the messages and return the number of the last one."""
    stored = [await store.append_user_message("s", LONG_TEXT, at=1, key=None) for _ in range(MESSAGE_COUNT)]
    return stored[-1].number


async def test_run_reads_all_messages(store: LimitedStore) -> None:
    await send_long_messages(store)
    await make_worker(store, _model(creates_plan())).work("s", Attempt(reason=CRASHED))


async def test_question_answered_with_many_long_messages_continues_the_run(store: LimitedStore) -> None:
    await store.append_user_message("s", "do it", at=1, key=None)
    asks = calls(("message_ask_user", {"text": "?"}))
    await make_worker(store, _model(creates_plan("one"), asks)).work("s", Attempt(reason=CRASHED))
    await send_long_messages(store)
    model = _model(completes_step(), says("the answer"))
    await make_worker(store, model).work("s", Attempt(reason=CRASHED))


async def test_stop_ends_the_run_of_all_messages(store: LimitedStore) -> None:
    up_to = await send_long_messages(store)
    await make_worker(store).finish_stopped("s", up_to=up_to, fencing_token=None)
