"""A sandbox that was started anew in the middle of a session: what the model is told, and how often."""

from app.application.services.run_worker import PlanActWorker
from app.domain.external.run_queue import Attempt
from app.domain.models.message import ToolMessage
from app.domain.prompts.executing import SANDBOX_REPLACED
from app.domain.services.flows.plan_act import FlowDependencies
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory.feed import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import Question, ScriptedLLM, calling, saying

PLAN = calling(
    ("create_plan", {"title": "T", "message": "M", "goal": "G", "steps": [{"id": "1", "description": "one"}]})
)
WORK = calling(("shell_exec", {"id": "a", "exec_dir": "~", "command": "true"}))
TELL = calling(("message_notify_user", {"text": "hello"}))
END = calling(("complete_step", {"success": True, "result": "ok"}))


class World:
    """A session whose sandbox can be replaced, and a worker for its runs."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.sandboxes = MemorySandboxProvider()

    async def replace_the_sandbox(self, _question: Question) -> None:
        self.sandboxes.sandboxes.clear()

    async def run(self, *turns: object) -> list[str]:
        """One run in which the model takes `turns` after its plan; answers what each tool call was answered."""
        said = await self.store.load_transcript("s", "executor")
        await self.store.append_user_message("s", "do it", at=1, key=None)
        model = ScriptedLLM([PLAN, *turns, END, saying("Done.")])  # type: ignore[list-item]
        dependencies = FlowDependencies(event_log=self.store, feed=MemoryFeed(), model=model, tools=EXECUTING)
        worker = PlanActWorker(
            dependencies=dependencies,
            sandboxes=self.sandboxes,
            browsers=MemoryBrowsers(),
            screenshots=MemoryScreenshotKeeper(),
            engine=FakeSearch(),
        )
        await worker.work("s", Attempt(reason=""))
        fresh = (await self.store.load_transcript("s", "executor"))[len(said) :]
        return [message.content for message in fresh if isinstance(message, ToolMessage)]

    async def then_work(self, question: Question) -> object:
        """A turn of the model before which the sandbox was replaced."""
        await self.replace_the_sandbox(question)
        return WORK


async def new_world() -> World:
    world = World()
    await world.store.create("s", owner="", at=1)
    return world


async def test_the_first_computer_of_a_session_is_not_called_a_new_one() -> None:
    world = await new_world()
    assert not any(SANDBOX_REPLACED in text for text in await world.run(WORK, WORK))


async def test_the_first_result_from_a_new_computer_says_so_and_the_next_does_not() -> None:
    world = await new_world()
    first, second, third, _ = await world.run(WORK, world.then_work, WORK)
    assert not first.startswith(SANDBOX_REPLACED)
    assert second.startswith(SANDBOX_REPLACED)
    assert not third.startswith(SANDBOX_REPLACED)


async def test_a_call_that_does_not_touch_the_computer_says_nothing_of_it() -> None:
    world = await new_world()
    await world.run(WORK)
    world.sandboxes.sandboxes.clear()
    told, worked, _ = await world.run(TELL, WORK)
    assert SANDBOX_REPLACED not in told
    assert worked.startswith(SANDBOX_REPLACED)


async def test_a_later_run_in_another_process_is_told_too() -> None:
    world = await new_world()
    await world.run(WORK)
    world.sandboxes = MemorySandboxProvider()
    assert [text.startswith(SANDBOX_REPLACED) for text in await world.run(WORK, WORK)] == [True, False, False]
