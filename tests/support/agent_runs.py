"""A run worker over fakes, for tests of runs without a server."""

from collections.abc import Mapping

from app.application.services.run_worker import PlanActWorker
from app.domain.external.browser import Browsers
from app.domain.external.llm import LLM, ModelCatalog
from app.domain.external.sandbox import SandboxProvider
from app.domain.services.flows.plan_act import FlowDependencies
from app.domain.services.tools.base import Tool
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.streams.memory import MemoryFeed
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import ScriptedLLM


def make_worker(
    store: MemoryStore,
    model: LLM | None = None,
    *,
    sandboxes: SandboxProvider | None = None,
    browsers: Browsers | None = None,
    feed: MemoryFeed | None = None,
    tools: Mapping[str, Tool] = EXECUTING,
) -> PlanActWorker:
    """Return a worker that carries out runs over `store`. Without a model, it can only stop them."""
    return PlanActWorker(
        FlowDependencies(
            event_log=store,
            feed=feed or MemoryFeed(),
            models=ModelCatalog(models={"default": model or ScriptedLLM([])}, default="default"),
            tools=tools,
            sandboxes=sandboxes or MemorySandboxProvider(),
            browsers=browsers or MemoryBrowsers(),
            screenshots=MemoryScreenshotKeeper(),
            engine=FakeSearch(),
        )
    )
