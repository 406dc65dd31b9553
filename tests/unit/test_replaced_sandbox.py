"""When the sandbox was replaced during a session, the model is told once, with the first result from the new one."""

import pytest

from app.domain.external.llm import ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.message import ToolMessage
from app.domain.prompts.executing import SANDBOX_REPLACED
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import (
    RecordedRequest,
    Respond,
    ScriptedLLM,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import make_worker

USES_SANDBOX = runs_command("true")
TELLS_USER = calls(("message_notify_user", {"text": "hello"}))


class ReplaceableSandboxSession:
    """A session whose sandbox can be replaced."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.sandboxes = MemorySandboxProvider()

    def replace_sandbox(self) -> None:
        self.sandboxes.sandboxes.clear()

    async def replace_sandbox_then_use_it(self, _: RecordedRequest) -> ModelReply:
        self.replace_sandbox()
        return USES_SANDBOX

    async def run(self, *turns: ModelReply | Respond) -> list[str]:
        """Carry out one run with `turns` as its only step. Return the results that the model received."""
        before = len(await self.store.load_transcript("s", "executor"))
        await self.store.append_user_message("s", "do it", at=1, key=None)
        model = ScriptedLLM([creates_plan("one"), *turns, completes_step(), says("Done.")])
        await make_worker(self.store, model, sandboxes=self.sandboxes).work("s", Attempt(reason=""))
        messages = (await self.store.load_transcript("s", "executor"))[before:]
        return [message.content for message in messages if isinstance(message, ToolMessage)]


def noted(results: list[str]) -> list[bool]:
    return [text.startswith(SANDBOX_REPLACED) for text in results]


@pytest.fixture
async def session() -> ReplaceableSandboxSession:
    session = ReplaceableSandboxSession()
    await session.store.create("s", owner="", at=1)
    return session


async def test_first_sandbox_of_a_session_is_not_noted(session: ReplaceableSandboxSession) -> None:
    assert noted(await session.run(USES_SANDBOX, USES_SANDBOX)) == [False, False, False]


async def test_replaced_sandbox_is_noted_in_its_first_result_only(session: ReplaceableSandboxSession) -> None:
    results = await session.run(USES_SANDBOX, session.replace_sandbox_then_use_it, USES_SANDBOX)
    assert noted(results) == [False, True, False, False]


async def test_replaced_sandbox_is_not_noted_by_a_call_that_does_not_use_it(
    session: ReplaceableSandboxSession,
) -> None:
    await session.run(USES_SANDBOX)
    session.replace_sandbox()
    assert noted(await session.run(TELLS_USER, USES_SANDBOX)) == [False, True, False]


async def test_replaced_sandbox_is_noted_in_a_later_run_of_another_process(session: ReplaceableSandboxSession) -> None:
    await session.run(USES_SANDBOX)
    session.sandboxes = MemorySandboxProvider()
    assert noted(await session.run(USES_SANDBOX, USES_SANDBOX)) == [True, False, False]
