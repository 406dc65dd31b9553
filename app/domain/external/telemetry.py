"""Ports: what observes the service at work, for metrics and traces. Without an adapter, nothing is observed."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from app.domain.models.event import Event
from app.domain.models.run import Checkpoint
from app.domain.models.tool import OpenCall, ToolResult

T = TypeVar("T")

AttributeValue = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, AttributeValue]
"""Facts about an operation, by the names of OpenTelemetry's semantic conventions."""

SpanKind = Literal["server", "client", "internal"]
"""Whether an operation serves another program, calls one, or does neither."""


class Span(Protocol):
    """The record of one operation in a trace. It has ended once `end` was called."""

    @property
    def trace_id(self) -> str:
        """ID of the trace as 32 hexadecimal digits; empty if the operation is not traced."""
        ...

    @property
    def traceparent(self) -> str:
        """The span as a W3C `traceparent`, by which another process continues the trace; empty if not traced."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Add facts that were not known at the start."""
        ...

    def rename(self, name: str) -> None:
        """Set the name, which was not known at the start."""
        ...

    def end(self, error: str = "") -> None:
        """End the operation. `error`: the class of its failure, never a text; empty if it succeeded."""
        ...


class Tracer(Protocol):
    """Records operations as spans. Methods are called on the event loop; they neither block nor fail."""

    @property
    def captures_content(self) -> bool:
        """Whether spans may contain the texts of messages, arguments and results."""
        ...

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: Span | str,
        started_at: float | None = None,
    ) -> Span:
        """Start a span.

        Args:
            name: Name of the operation; one of few.
            kind: What it does.
            attributes: What is known of it.
            parent: The span that it is a part of, or a `traceparent`. An invalid or empty one begins a new trace.
            started_at: When it began, in seconds since the epoch; None for now.
        """
        ...


class _NoSpan:
    trace_id = traceparent = ""

    def set(self, attributes: Attributes) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def end(self, error: str = "") -> None:
        pass


NO_SPAN: Span = _NoSpan()
"""The span of an operation that is not traced."""


class _NoTracer:
    captures_content = False

    def start(
        self, name: str, kind: SpanKind, attributes: Attributes, *, parent: Span | str, started_at: float | None = None
    ) -> Span:
        return NO_SPAN


NO_TRACER: Tracer = _NoTracer()
"""Traces nothing."""


class RunObserver(Protocol):
    """Learns what an attempt at a run does. Methods are called on the event loop; they neither block nor fail."""

    def prepared(self, checkpoint: Checkpoint, *, new_message: bool) -> None:
        """Learn that the attempt has loaded its checkpoint. `new_message`: whether it has read user messages."""
        ...

    def stored(self, events: Sequence[Event], seconds: float) -> None:
        """Learn that a commit with `events` is stored, `seconds` after it was first sent to the store."""
        ...

    async def run_tool(self, call: OpenCall, run: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        """Return the result of `run`, which carries out `call`. Let its errors pass."""
        ...


class _NoRunObserver:
    def prepared(self, checkpoint: Checkpoint, *, new_message: bool) -> None:
        pass

    def stored(self, events: Sequence[Event], seconds: float) -> None:
        pass

    async def run_tool(self, call: OpenCall, run: Callable[[], Awaitable[ToolResult]]) -> ToolResult:
        return await run()


NO_RUN_OBSERVER: RunObserver = _NoRunObserver()
"""Observes no run."""


ReapReason = Literal["idle", "ended", "no_session", "pool"]
"""Why a sandbox was removed: it was unused, it has ended, or its session or the process of its pool is gone."""


class SandboxObserver(Protocol):
    """Counts what happens to sandboxes. Methods are called on the event loop; they neither block nor fail."""

    async def start_sandbox(self, session_id: str, start: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `start`, which makes the session's sandbox ready. Let its errors pass."""
        ...

    def reaped(self, reason: ReapReason) -> None:
        """Count a sandbox that was removed although nobody asked for it."""
        ...


class _NoSandboxObserver:
    async def start_sandbox(self, session_id: str, start: Callable[[], Awaitable[T]]) -> T:
        return await start()

    def reaped(self, reason: ReapReason) -> None:
        pass


NO_SANDBOX_OBSERVER: SandboxObserver = _NoSandboxObserver()
"""Observes no sandbox."""
