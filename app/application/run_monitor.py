"""The run monitor: counts runs, model calls, tool calls and commits of this process, and traces them.

    request ─▶ attempt (invoke_agent) ─▶ step ─▶ model call (chat), tool call (execute_tool) ─▶ sandbox start

The origin of a user message is stored with it: the time, and the trace of its request. So the attempts of a run are in
one trace, whichever processes make them.
"""

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from app.application import context
from app.domain.errors import SandboxFailure, SandboxUnavailable, SearchFailure
from app.domain.external.telemetry import NO_SPAN, NO_TRACER, AttributeValue, ReapReason, Span, Tracer
from app.domain.models.event import DoneEvent, ErrorEvent, Event, StepEvent, WaitEvent
from app.domain.models.run import Checkpoint
from app.domain.models.tool import OpenCall, ToolResult

T = TypeVar("T")

AGENT_NAME = "anker"
"""`gen_ai.agent.name` of the runs."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of most histograms, in seconds."""

MAX_CONTENT = 2_000
"""Maximum length of a text in a span, in characters."""

RunOutcomeLabel = Literal["completed", "waiting", "failed", "stopped", "interrupted", "lost"]
"""How an attempt at a run ended. After `interrupted` another attempt may follow. `lost`: its process died."""

ToolOutcome = Literal["ok", "failed", "unavailable", "interrupted", "error"]
"""How a tool call ended: `failed` was told to the model, `unavailable` and `error` are faults of the service."""

_ORIGIN = re.compile(r"(\d{1,15})(?: (00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}))?")
_PLAIN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Histogram:
    """Counts of values up to fixed bounds."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Number of values up to each bound and above the bound before it; the last one is for larger values."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


def _histograms() -> dict[str, Histogram]:
    return {}


@dataclass(slots=True)
class RunMetrics:
    """Counters of the runs and sandboxes of one process. The keys are labels, of which there are few.

    Known labels are reported from the start: Prometheus sees the first increase only of a series that it knows.
    """

    runs: Counter[RunOutcomeLabel] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(RunOutcomeLabel), 0)))
    queue_wait: Histogram = field(default_factory=Histogram)
    first_event: Histogram = field(default_factory=Histogram)
    first_text: Histogram = field(default_factory=Histogram)
    model_calls: dict[str, Histogram] = field(default_factory=_histograms)
    """Times of model calls by profile."""
    tool_calls: Counter[tuple[str, ToolOutcome]] = field(default_factory=Counter[tuple[str, ToolOutcome]])
    """Number of tool calls by function and outcome."""
    tool_times: dict[str, Histogram] = field(default_factory=_histograms)
    """Times of tool calls by toolkit."""
    commits: Histogram = field(default_factory=Histogram)
    sandbox_starts: Histogram = field(default_factory=Histogram)
    failed_starts: int = 0
    """Number of sandboxes that could not be started."""
    reaped: Counter[ReapReason] = field(default_factory=lambda: Counter(dict.fromkeys(get_args(ReapReason), 0)))


@dataclass(slots=True)
class _ObservedAttempt:
    """The attempt that the current task is a part of."""

    session_id: str
    started_at: float
    crashed: bool
    span: Span = NO_SPAN
    is_prepared: bool = False
    step: Span | None = None
    steps: int = 0
    """Number of steps that the attempt has carried on."""
    outcome: RunOutcomeLabel | None = None

    def end_step(self, error: str = "") -> None:
        if self.step is not None:
            self.step.end(error)
            self.step = None


_attempt: ContextVar[_ObservedAttempt | None] = ContextVar("attempt", default=None)


class RunMonitor:
    """A `RunObserver` and `SandboxObserver`. It also observes attempts, and names the origin of messages."""

    def __init__(
        self,
        metrics: RunMetrics,
        tracer: Tracer = NO_TRACER,
        *,
        functions: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create a monitor.

        Args:
            metrics: Where to count.
            tracer: Records the spans.
            functions: Names of the tools. Calls of other functions are counted together.
            clock: Returns seconds since the epoch.
        """
        self.metrics = metrics
        self.tracer = tracer
        self._functions = frozenset(functions)
        self._clock = clock

    @property
    def parent(self) -> Span:
        """The span of which an operation that starts now is a part."""
        attempt = _attempt.get()
        current = context.span.get()
        # A commit of another task starts the next step, so the attempt knows it, and not the context.
        return attempt.step if attempt and attempt.step and current is attempt.span else current

    def origin(self) -> str:
        """Return the origin of a message that is stored now: see `Checkpoint.origin`."""
        return f"{self._clock() * 1000:.0f} {context.span.get().traceparent}".rstrip()

    @contextmanager
    def attempt(self, session_id: str, *, crashed: bool) -> Generator[None]:
        """Observe an attempt at a run. `crashed`: whether the process of the attempt before it has died."""
        attempt = _ObservedAttempt(session_id, self._clock(), crashed)
        attempt_token, span_token = _attempt.set(attempt), context.span.set(NO_SPAN)
        error = ""
        try:
            yield
        except BaseException as failure:
            error = type(failure).__name__
            if attempt.is_prepared and attempt.outcome is None:
                attempt.outcome = "interrupted"
            raise
        finally:
            self._end(attempt, error)
            context.span.reset(span_token)
            _attempt.reset(attempt_token)

    def prepared(self, checkpoint: Checkpoint, *, new_message: bool) -> None:
        """Implement `RunObserver.prepared`: the attempt joins the trace of the newest message."""
        attempt = _attempt.get()
        if attempt is None or attempt.is_prepared:
            return
        attempt.is_prepared = True
        if attempt.crashed:
            self.metrics.runs["lost"] += 1
        stored_at, traceparent = _read_origin(checkpoint.origin)
        if new_message and stored_at is not None:
            self.metrics.queue_wait.observe(max(0.0, attempt.started_at - stored_at))
        attempt.span = self.tracer.start(
            f"invoke_agent {AGENT_NAME}",
            "internal",
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": AGENT_NAME,
                "gen_ai.conversation.id": attempt.session_id,
                "anker.run.crashed": attempt.crashed,
            },
            parent=traceparent,
            started_at=attempt.started_at,
        )
        context.span.set(attempt.span)
        if checkpoint.phase == "executing" and checkpoint.plan.running is not None:
            self._start_step(attempt)

    def stored(self, events: Sequence[Event], seconds: float) -> None:
        """Implement `RunObserver.stored`: the events tell when a step starts and how a run ends."""
        self.metrics.commits.observe(seconds)
        attempt = _attempt.get()
        for event in events:
            match event:
                case StepEvent(status=status):
                    if attempt is not None and status == "running":
                        self._start_step(attempt)
                    elif attempt is not None:
                        attempt.end_step("step_failed" if status == "failed" else "")
                case DoneEvent() if attempt is None:
                    self.metrics.runs["stopped"] += 1
                case DoneEvent() | WaitEvent() | ErrorEvent():
                    if attempt is not None:
                        attempt.outcome = _OUTCOMES[type(event)]
                case _:
                    pass

    async def run_tool(self, call: OpenCall, run: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        """Implement `RunObserver.run_tool`."""
        span = self._start_tool(call)
        token, started = context.span.set(span), time.perf_counter()
        outcome: ToolOutcome = "ok"
        error = ""
        try:
            result = await run()
            if not result.success:
                outcome, error = "failed", "tool_error"
            if self.tracer.captures_content:
                span.set({"gen_ai.tool.call.result": result.text[:MAX_CONTENT]})
            return result
        except BaseException as failure:
            outcome, error = _outcome_of(failure), type(failure).__name__
            raise
        finally:
            context.span.reset(token)
            known = call.function in self._functions
            self.metrics.tool_calls[call.function if known else "other", outcome] += 1
            toolkit = self.metrics.tool_times.setdefault(call.toolkit if known else "other", Histogram())
            toolkit.observe(time.perf_counter() - started)
            span.end(error)

    async def start_sandbox(self, session_id: str, start: Callable[[], Awaitable[T]]) -> T:
        """Implement `SandboxObserver.start_sandbox`."""
        attributes = {"gen_ai.conversation.id": session_id}
        span = self.tracer.start("sandbox start", "internal", attributes, parent=self.parent)
        started, error = time.perf_counter(), ""
        try:
            result = await start()
            self.metrics.sandbox_starts.observe(time.perf_counter() - started)
            return result
        except BaseException as failure:
            error = type(failure).__name__
            self.metrics.failed_starts += not isinstance(failure, asyncio.CancelledError)
            raise
        finally:
            span.end(error)

    def reaped(self, reason: ReapReason) -> None:
        """Implement `SandboxObserver.reaped`."""
        self.metrics.reaped[reason] += 1

    def _end(self, attempt: _ObservedAttempt, error: str) -> None:
        attempt.end_step(error)
        if attempt.outcome is not None:
            self.metrics.runs[attempt.outcome] += 1
            attempt.span.set({"anker.run.outcome": attempt.outcome})
        attempt.span.end("run_failed" if attempt.outcome == "failed" else error)

    def _start_step(self, attempt: _ObservedAttempt) -> None:
        attempt.end_step()
        attempt.steps += 1
        attributes = {"gen_ai.conversation.id": attempt.session_id, "anker.step.number": attempt.steps}
        attempt.step = self.tracer.start("step", "internal", attributes, parent=attempt.span)

    def _start_tool(self, call: OpenCall) -> Span:
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.function,
            "gen_ai.tool.type": "function",
            "gen_ai.conversation.id": context.session_id.get(),
        }
        if _PLAIN_ID.fullmatch(call.id):  # the model's server chose it
            attributes["gen_ai.tool.call.id"] = call.id
        if self.tracer.captures_content:
            arguments = json.dumps(call.args, ensure_ascii=False, default=str)
            attributes["gen_ai.tool.call.arguments"] = arguments[:MAX_CONTENT]
        return self.tracer.start(f"execute_tool {call.function}", "internal", attributes, parent=self.parent)


_OUTCOMES: dict[type[Event], RunOutcomeLabel] = {DoneEvent: "completed", WaitEvent: "waiting", ErrorEvent: "failed"}


def _read_origin(origin: str) -> tuple[float | None, str]:
    """Return when the message was stored, in seconds since the epoch, and its `traceparent`, as far as known."""
    parsed = _ORIGIN.fullmatch(origin)
    return (None, "") if parsed is None else (int(parsed[1]) / 1000, parsed[2] or "")


def _outcome_of(failure: BaseException) -> ToolOutcome:
    match failure:
        case SandboxUnavailable():
            return "unavailable"
        case SandboxFailure() | SearchFailure():
            return "failed"
        case asyncio.CancelledError():
            return "interrupted"
        case _:
            return "error"
