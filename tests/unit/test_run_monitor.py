"""What the run monitor counts and traces."""

import asyncio
import json
from bisect import bisect_left
from dataclasses import replace

import pytest

from app.application.observed_model import ObservedModel
from app.application.run_monitor import Histogram, RunMetrics, RunMonitor
from app.application.services.run_worker import PlanActWorker
from app.domain.errors import ModelFailure, SandboxFailure, SandboxUnavailable
from app.domain.external.llm import ModelCatalog, ModelReply
from app.domain.external.run_queue import Attempt
from app.domain.models.tool import OpenCall, ToolResult
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.queue.supervisor import InlineRunQueue
from tests.fakes.memory_store import MemoryStore
from tests.fakes.recording_tracer import RecordingTracer
from tests.fakes.scripted_llm import ScriptedLLM, calls, completes_step, creates_plan, runs_command, says
from tests.support.agent_runs import make_worker
from tests.support.eventually import eventually

CANARY = "the-canary-in-a-message"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Session:
    """A session whose runs are observed."""

    def __init__(self, script, *, captures_content: bool = False) -> None:
        self.store = MemoryStore()
        self.tracer = RecordingTracer(captures_content)
        self.now = 12.5
        self.monitor = RunMonitor(RunMetrics(), self.tracer, functions=EXECUTING, clock=lambda: self.now)
        model = ObservedModel(ScriptedLLM(script), self.monitor, address="https://api.anthropic.com/v1")
        dependencies = make_worker(self.store).dependencies
        catalog = ModelCatalog(models={"default": model}, default="default")
        self.worker = PlanActWorker(replace(dependencies, models=catalog, observer=self.monitor), self.monitor)

    async def send(self, text: str = CANARY, origin: str = f"10000 {TRACEPARENT}") -> None:
        if not self.store.exists("s"):
            await self.store.create("s", owner="", at=1)
        await self.store.append_user_message("s", text, at=1, key=None, origin=origin)

    async def work(self, *, crashed: bool = False) -> None:
        await self.worker.work("s", Attempt(reason="", crashed=crashed))

    @property
    def outcomes(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.monitor.metrics.runs.items() if count}


def full_run() -> list:
    return [
        creates_plan(CANARY, "b"),
        runs_command(f"echo {CANARY}"),
        completes_step(),
        completes_step(),
        says(CANARY),
    ]


async def test_run_is_traced_as_attempt_steps_model_calls_and_tool_calls() -> None:
    session = Session(full_run())
    await session.send()
    await session.work()
    chat = "chat scripted" if session.tracer.named("chat scripted") else session.tracer.named("chat")[0].name
    assert session.tracer.outline == [
        f"{TRACEPARENT} > invoke_agent anker",
        f"invoke_agent anker > {chat}",
        "invoke_agent anker > step",
        f"step > {chat}",
        "step > execute_tool shell_exec",
        f"step > {chat}",
        "invoke_agent anker > step",
        f"step > {chat}",
        f"invoke_agent anker > {chat}",
    ]
    assert all(span.error == "" for span in session.tracer.spans)
    assert session.tracer.named("chat")[0].attributes["gen_ai.provider.name"] == "anthropic"
    assert session.tracer.named("chat")[0].attributes["server.address"] == "api.anthropic.com"
    assert {span.attributes["gen_ai.conversation.id"] for span in session.tracer.spans} == {"s"}
    assert session.outcomes == {"completed": 1}


async def test_spans_contain_texts_only_if_asked_for() -> None:
    for captures_content in (False, True):
        session = Session(full_run(), captures_content=captures_content)
        await session.send()
        await session.work()
        text = json.dumps([span.attributes for span in session.tracer.spans])
        assert (CANARY in text) is captures_content


async def test_captured_texts_are_those_of_the_conventions() -> None:
    session = Session(full_run(), captures_content=True)
    await session.send()
    await session.work()
    first = session.tracer.named("chat")[0].attributes
    assert [each["role"] for each in json.loads(first["gen_ai.input.messages"])] == ["system", "user"]
    assert json.loads(first["gen_ai.output.messages"])[0]["parts"][1]["name"] == "create_plan"
    tool = session.tracer.named("execute_tool")[0].attributes
    assert CANARY in json.loads(tool["gen_ai.tool.call.arguments"])["command"]


async def test_failed_model_ends_the_run_as_failed_without_the_text_of_the_error() -> None:
    session = Session([ModelFailure(CANARY)])
    await session.send()
    await session.work()
    assert session.outcomes == {"failed": 1}
    assert session.tracer.outline[-1].endswith("!ModelFailure")
    assert session.tracer.spans[0].error == "run_failed"
    assert CANARY not in json.dumps([span.attributes for span in session.tracer.spans])


async def test_question_to_the_user_counts_as_waiting_and_its_answer_continues_the_step() -> None:
    session = Session(
        [creates_plan("a"), calls(("message_ask_user", {"text": "Which?"})), completes_step(), says("Done.")]
    )
    await session.send()
    await session.work()
    assert session.outcomes == {"waiting": 1}
    await session.send("That one.")
    await session.work()
    assert session.outcomes == {"waiting": 1, "completed": 1}
    assert len(session.tracer.named("invoke_agent")) == len(session.tracer.named("step")) == 2


async def test_cancelled_attempt_counts_as_interrupted_and_closes_its_spans() -> None:
    started = asyncio.Event()

    async def hang(_: object) -> None:
        started.set()
        await asyncio.Event().wait()

    session = Session(hang)
    await session.send()
    attempt = asyncio.create_task(session.work())
    await started.wait()
    attempt.cancel()
    await asyncio.wait([attempt])
    assert session.outcomes == {"interrupted": 1}
    assert [span.error for span in session.tracer.spans] == ["CancelledError", "CancelledError"]


async def test_stopped_run_counts_as_stopped() -> None:
    session = Session([])
    await session.send()
    await session.worker.finish_stopped("s", up_to=1, fencing_token=None)
    assert session.outcomes == {"stopped": 1}


async def test_attempt_after_a_crash_counts_the_lost_one_and_joins_its_trace() -> None:
    session = Session([creates_plan(message="Hello.")])
    await session.send()
    await session.work(crashed=True)
    assert session.outcomes == {"lost": 1, "completed": 1}
    assert session.tracer.spans[0].parent == TRACEPARENT
    assert session.tracer.spans[0].attributes["anker.run.crashed"] is True


async def test_attempt_with_nothing_to_do_counts_nothing() -> None:
    session = Session([creates_plan(message="Hello.")])
    await session.send()
    await session.work()
    await session.work()
    assert session.outcomes == {"completed": 1}
    assert sum(session.monitor.metrics.queue_wait.counts) == 1


@pytest.mark.parametrize("origin", ["", "x", f"1 {TRACEPARENT} x", "-1", "1 00-zz"])
async def test_unreadable_origin_begins_a_new_trace(origin: str) -> None:
    session = Session([creates_plan(message="Hello.")])
    await session.send(origin=origin)
    await session.work()
    assert session.tracer.spans[0].parent == ""
    assert sum(session.monitor.metrics.queue_wait.counts) == 0


async def test_queue_wait_is_measured_from_the_storing_of_the_message() -> None:
    session = Session([creates_plan(message="Hello.")])
    await session.send(origin="10000")
    await session.work()
    assert session.monitor.metrics.queue_wait.sum == pytest.approx(2.5)


async def test_queue_wait_includes_the_wait_for_a_slot() -> None:
    asked, may_reply = asyncio.Event(), asyncio.Event()

    async def respond(_: object) -> ModelReply:
        asked.set()
        await may_reply.wait()
        return creates_plan(message="Hello.")

    session = Session(respond)
    queue = InlineRunQueue(session.worker, max_runs=1)
    for session_id in ("first", "second"):
        await session.store.create(session_id, owner="one", at=1)
        message = await session.store.append_user_message(session_id, "go", at=1, key=None, origin="12500")
        await queue.wake(session_id, up_to=message.number, owner="one")
    await asked.wait()
    assert (queue.active, queue.waiting) == (1, 1)
    session.now += 45
    may_reply.set()
    await eventually(lambda: session.outcomes == {"completed": 2})
    queue_wait = session.monitor.metrics.queue_wait
    assert (queue_wait.sum, queue_wait.counts[bisect_left(queue_wait.bounds, 45)]) == (45, 1)


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (None, "ok"),
        (SandboxFailure("no such file"), "failed"),
        (SandboxUnavailable("gone"), "unavailable"),
        (KeyError("bug"), "error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
async def test_tool_calls_are_counted_by_function_and_outcome(failure: Exception | None, outcome: str) -> None:
    monitor = RunMonitor(RunMetrics(), functions=["file_read"])

    async def run() -> ToolResult:
        if failure is not None:
            raise failure
        return ToolResult(text="text")

    for function in ("file_read", "invented"):
        call = OpenCall(id="1", toolkit="file", function=function)
        await asyncio.gather(monitor.run_tool(call, run), return_exceptions=True)
    assert monitor.metrics.tool_calls == {("file_read", outcome): 1, ("other", outcome): 1}
    assert set(monitor.metrics.tool_times) == {"file", "other"}


async def test_call_id_that_may_be_a_text_is_left_out() -> None:
    tracer = RecordingTracer()

    async def run() -> ToolResult:
        return ToolResult(text="")

    for call_id in ("call_1", "please read this text", "x" * 65):
        call = OpenCall(id=call_id, toolkit="file", function="file_read")
        await RunMonitor(RunMetrics(), tracer).run_tool(call, run)
    assert [span.attributes.get("gen_ai.tool.call.id") for span in tracer.spans] == ["call_1", None, None]


async def test_sandbox_start_is_timed_and_its_failure_counted() -> None:
    monitor = RunMonitor(RunMetrics(), RecordingTracer())

    async def succeed() -> str:
        return "sandbox"

    async def fail() -> str:
        raise SandboxUnavailable("no engine")

    assert await monitor.start_sandbox("s", succeed) == "sandbox"
    with pytest.raises(SandboxUnavailable):
        await monitor.start_sandbox("s", fail)
    assert sum(monitor.metrics.sandbox_starts.counts) == monitor.metrics.failed_starts == 1


def test_histogram_counts_a_value_on_a_bound_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.sum) == ([2, 2, 1], 8.0)
