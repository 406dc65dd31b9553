"""Runs that are interrupted, stopped, crashed and talked over at any moment: what must hold afterwards always does."""

import asyncio
import json
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.application.services.chat import ChatRequest, ChatService
from app.application.services.run_worker import PlanActWorker
from app.application.services.stop_run import StopRun
from app.application.services.streams import EventStreams
from app.domain.errors import StoreUnavailable
from app.domain.external.llm import ModelReply
from app.domain.models.message import AssistantMessage, Message, ToolMessage, UserMessage
from app.domain.services.agents import checkpointer
from app.domain.services.flows.plan_act import FlowDependencies
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.queue import supervisor
from app.infrastructure.queue.inline import InlineRunQueue
from app.infrastructure.streams.memory.feed import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import Question, ScriptedLLM, calling, saying
from tests.support.invariants import check_log

STEPS = [{"id": "1", "description": "one"}, {"id": "2", "description": "two"}]
PLAN = calling(("create_plan", {"title": "T", "message": "M", "goal": "G", "steps": STEPS}))
ANSWER = calling(("create_plan", {"title": "T", "message": "Answer", "goal": "", "steps": []}))
EXECUTING_TURNS: Sequence[ModelReply] = (
    calling(("shell_exec", {"id": "a", "exec_dir": "~", "command": "work"})),
    calling(("shell_exec", {"id": "a", "exec_dir": "~", "command": "hang"})),
    calling(("file_read", {"file": "x"}), ("file_find_by_name", {"path": "~", "glob": "*"}), ("file_read", "{")),
    calling(("message_notify_user", {"text": "news"}), ("complete_step", {"success": True, "result": "r"})),
    calling(("complete_step", {"success": False, "result": "no", "plan_changes": {"steps": STEPS[1:]}})),
    calling(("complete_step", {"success": True, "result": "r"})),
    calling(("complete_step", {"success": True, "result": "r"})),
    calling(("message_ask_user", {"text": "Which?"})),
    calling(("nonsense", "{"), ids=["same"]),
    saying("prose"),
    saying(""),
)


class SlowStore(MemoryStore):
    """A store with real waiting in it, so that a cancellation can come in the middle of a write.

    `away`: how often a write fails, every other time after it has happened.
    """

    rng: random.Random
    away = 0.0

    async def commit(self, session_id: str, change: Any) -> Any:
        await ticks(self.rng.randrange(4))
        fails, too_late = self.rng.random() < self.away, self.rng.random() < 0.5
        records = [] if fails and not too_late else await super().commit(session_id, change)
        await ticks(self.rng.randrange(4))
        if fails:
            raise StoreUnavailable("the connection broke")
        return records

    async def unread_messages(self, session_id: str, *, after: int) -> Any:
        await ticks(self.rng.randrange(3))
        return await super().unread_messages(session_id, after=after)


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class World:
    """A service in memory that can be killed and started again over the same store."""

    def __init__(self, seed: int, *, away: float) -> None:
        self.rng, self.dice = random.Random(seed), random.Random(seed)
        self.feed = MemoryFeed()
        self.store = SlowStore(on_committed=self.feed.publish)
        self.store.rng, self.store.away = self.rng, away
        self.sandboxes = MemorySandboxProvider()
        self.model = ScriptedLLM(self.turn)
        self.patience = 400
        self.said = 0
        self.start()

    def start(self) -> None:
        dependencies = FlowDependencies(event_log=self.store, feed=self.feed, model=self.model, tools=EXECUTING)
        worker = PlanActWorker(
            dependencies=dependencies,
            sandboxes=self.sandboxes,
            browsers=MemoryBrowsers(),
            screenshots=MemoryScreenshotKeeper(),
            engine=FakeSearch(),
        )
        self.queue = InlineRunQueue(worker)
        streams = EventStreams(self.store, self.feed)
        self.stop_run = StopRun(sessions=self.store, queue=self.queue)
        self.chat = ChatService(
            sessions=self.store, event_log=self.store, streams=streams, feed=self.feed, queue=self.queue
        )

    async def turn(self, question: Question) -> ModelReply:
        check_conversation(question.messages)
        await ticks(self.rng.randrange(6))
        self.patience -= 1
        if question.kind == "planning":
            return PLAN if self.dice.random() < 0.8 and self.patience > 0 else ANSWER
        if question.kind == "final":
            return self.dice.choice([saying("Done."), saying("")]) if self.patience > 0 else saying("Done.")
        return self.dice.choice(EXECUTING_TURNS) if self.patience > 0 else EXECUTING_TURNS[-5]

    async def crash(self) -> None:
        await self.queue.close()
        self.start()
        for session_id in await self.store.list_active():
            self.queue.resume(session_id)

    async def say(self) -> None:
        self.said += 1
        await self.chat.chat("s", ChatRequest(message=f"words-{self.said};"), owner="")

    async def settle(self, *, patience: int = 0) -> None:
        """Until the session rests; whatever hangs is let go, whatever asks is answered. `patience`: turns of the model
        before it comes to an end."""
        self.patience = patience
        async with asyncio.timeout(20):
            while True:
                drivers = [run.task for run in self.queue._supervisor._runs.values() if run.task]
                if drivers:
                    for sandbox in self.sandboxes.sandboxes.values():
                        for shell in list(sandbox._shells):
                            sandbox.release(shell)
                    await asyncio.wait(drivers, timeout=0.01)
                elif (await self.store.get("s", owner="")).status == "waiting":
                    await self.say()
                else:
                    return


def check_conversation(messages: Sequence[Message]) -> None:
    """What every provider wants: each call answered once, right after it."""
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            open_calls.remove(message.tool_call_id)
            continue
        assert not open_calls
        if isinstance(message, AssistantMessage):
            assert message.content or message.tool_calls
            open_calls = {call.id for call in message.tool_calls}
            assert len(open_calls) == len(message.tool_calls)
    assert not open_calls


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["say", "say", "stop", "crash", "wait"]), st.integers(0, 60)), min_size=1, max_size=8
)


@settings(max_examples=int(os.environ.get("EXAMPLES", "150")), deadline=None)
@given(seed=st.integers(0, 2**32), actions=ACTIONS)
def test_whatever_happens_the_log_and_the_transcripts_stay_whole(seed: int, actions: list[tuple[str, int]]) -> None:
    asyncio.run(live_through(seed, actions))


@settings(max_examples=int(os.environ.get("EXAMPLES", "150")), deadline=None)
@given(seed=st.integers(0, 2**32), actions=ACTIONS)
def test_so_they_do_when_the_store_comes_and_goes(seed: int, actions: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "_RETRY_SECONDS", 0)
        patch.setattr(supervisor, "_RETRY_SECONDS", (0,))
        asyncio.run(live_through(seed, actions, away=0.3))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_store_that_comes_and_goes_costs_no_call_and_no_turn_of_the_model(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointer, "_RETRY_SECONDS", 0)
        asyncio.run(compare(seed))


async def compare(seed: int) -> None:
    """Two runs of the same task, one of them over a store that fails in every third write."""
    logs: list[list[str]] = []
    asked: list[int] = []
    for away in (0.0, 0.3):
        world = World(seed, away=away)
        sandbox = await world.sandboxes.acquire("s")
        sandbox.script("hang", hangs=True)  # type: ignore[attr-defined]
        await world.store.create("s", owner="", at=0)
        await world.say()
        await world.settle(patience=30)
        records = await world.store.read("s", after=0, limit=100_000)
        # Calls that run at the same time end in any order.
        logs.append(sorted(f"{record.type} {_without_number(record.data)}" for record in records))
        asked.append(world.patience)
        await world.queue.close()
    assert logs[0] == logs[1] and asked[0] == asked[1]


def _without_number(data: bytes) -> str:
    shown = json.loads(data)
    return json.dumps({name: value for name, value in shown.items() if name not in ("event_id", "timestamp")})


async def live_through(seed: int, actions: list[tuple[str, int]], *, away: float = 0) -> None:
    world = World(seed, away=away)
    sandbox = await world.sandboxes.acquire("s")
    sandbox.script("hang", hangs=True)  # type: ignore[attr-defined]
    await world.store.create("s", owner="", at=0)
    await world.say()
    for action, after in actions:
        await ticks(after)
        match action:
            case "say":
                await world.say()
            case "stop":
                with suppress(StoreUnavailable):
                    await world.stop_run("s", owner="")
            case "crash":
                await world.crash()
    await world.settle()
    records = await world.store.read("s", after=0, limit=100_000)
    events = [{"event": record.type, "data": json.loads(record.data)} for record in records]
    check_log(events)
    assert (await world.store.get("s", owner="")).status == "completed"
    talk = await world.store.load_transcript("s", "planner")
    check_conversation(talk)
    check_conversation(await world.store.load_transcript("s", "executor"))
    # A digest of interrupted work may quote an answer once more; it is not how words are heard.
    heard = [m.content for m in talk if isinstance(m, UserMessage) and "<interrupted>" not in m.content]
    for number in range(1, world.said + 1):
        assert " ".join(heard).count(f"words-{number};") == 1, heard
    await world.queue.close()
