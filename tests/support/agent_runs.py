"""A run worker over fakes, for tests of runs without a server."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.application.services.run_worker import PlanActWorker
from app.domain.external.browser import Browsers
from app.domain.external.llm import LLM, ModelCatalog
from app.domain.external.run_queue import Attempt
from app.domain.external.sandbox import SandboxProvider
from app.domain.models.message import AssistantMessage, ToolMessage
from app.domain.services.agents.limits import RunLimits
from app.domain.services.flows.plan_act import CRASHED, FlowDependencies
from app.domain.services.tools.base import Tool
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import Outcome, Respond, ScriptedLLM
from tests.support.invariants import check_log


def make_worker(
    store: MemoryStore,
    model: LLM | None = None,
    *,
    sandboxes: SandboxProvider | None = None,
    browsers: Browsers | None = None,
    feed: MemoryFeed | None = None,
    tools: Mapping[str, Tool] = EXECUTING,
    limits: RunLimits | None = None,
) -> PlanActWorker:
    """Return a worker that carries out runs over `store`. Without a model, it can only stop them."""
    return PlanActWorker(
        FlowDependencies(
            event_log=store,
            feed=feed or MemoryFeed(),
            models=ModelCatalog(models={"default": model or ScriptedLLM([])}, default="default"),
            tools=tools,
            limits=limits or RunLimits(),
            sandboxes=sandboxes or MemorySandboxProvider(),
            browsers=browsers or MemoryBrowsers(),
            screenshots=MemoryScreenshotKeeper(),
            engine=FakeSearch(),
        )
    )


@dataclass
class ScriptedSession:
    """A session over a store in memory, carried by one attempt after another."""

    script: Sequence[Outcome | Respond] | Respond
    limits: RunLimits | None = None
    store: MemoryStore = field(default_factory=MemoryStore)
    sandboxes: MemorySandboxProvider = field(default_factory=MemorySandboxProvider)
    feed: MemoryFeed = field(default_factory=MemoryFeed)

    def __post_init__(self) -> None:
        self.model = ScriptedLLM(self.script)

    async def send(self, text: str = "do it") -> "ScriptedSession":
        """Store a message and make one attempt."""
        if not self.store.exists("s"):
            await self.store.create("s", owner="", at=1)
        await self.store.append_user_message("s", text, at=1, key=None)
        return await self.work()

    async def work(self) -> "ScriptedSession":
        worker = make_worker(self.store, self.model, limits=self.limits, sandboxes=self.sandboxes, feed=self.feed)
        await worker.work("s", Attempt(reason=CRASHED, crashed=False))
        return self

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        return [(record.type, json.loads(record.data)) for record in await self.store.read("s", after=0, limit=10_000)]

    async def outline(self) -> list[str]:
        """Return the events after the plan in short: step ids with status, tool statuses, texts."""
        short = {
            "step": lambda data: f"step {data['id']} {data['status']}",
            "tool": lambda data: f"{data['args'].get('command', data['function'])} {data['status']}",
            "message": lambda data: f"message {data['content']}",
        }
        return [short.get(kind, lambda _, kind=kind: kind)(data) for kind, data in await self.events()][2:]  # type: ignore[misc]

    async def check(self, *, ended: bool = True) -> None:
        """Check the log, and that every call has one result."""
        check_log([{"event": kind, "data": data} for kind, data in await self.events()], ended=ended)
        messages = await self.store.load_transcript("s", "executor")
        made = [c.id for m in messages if isinstance(m, AssistantMessage) for c in m.tool_calls]
        assert sorted(made) == sorted(m.tool_call_id for m in messages if isinstance(m, ToolMessage))
