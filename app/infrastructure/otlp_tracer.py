"""The `Tracer` port over the OpenTelemetry SDK, which sends spans to a collector by OTLP over HTTP.

Importing this module loads the SDK, which takes a while: do so only when an endpoint is set. The SDK reads its own
variables (`OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and others) from the environment.
"""

import asyncio
import logging
import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.domain.external.secrets import SecretMask
from app.domain.external.telemetry import Attributes, Span, SpanKind

log = logging.getLogger(__name__)

EXPORT_SECONDS = 5.0
"""Maximum time of one export, repetitions included, in seconds."""

CLOSE_SECONDS = 1.5
"""Maximum time for the last export, when the service ends, in seconds."""

WARNING_SECONDS = 60.0
"""Minimum time between two warnings about spans that cannot be exported, in seconds."""

_KINDS: dict[SpanKind, trace.SpanKind] = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "internal": trace.SpanKind.INTERNAL,
}
_PROPAGATOR = TraceContextTextMapPropagator()
_NANOSECONDS = 1_000_000_000


class OtlpSpan:
    """A `Span` of the SDK."""

    def __init__(self, span: trace.Span, mask: SecretMask) -> None:
        self.span = span
        self._mask = mask
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else ""

    @property
    def traceparent(self) -> str:
        """Implement `Span.traceparent`."""
        context = self.span.get_span_context()
        if not context.is_valid:
            return ""
        flags = TraceFlags.SAMPLED if context.trace_flags.sampled else TraceFlags.DEFAULT
        return f"00-{self.trace_id}-{trace.format_span_id(context.span_id)}-{flags:02x}"

    def set(self, attributes: Attributes) -> None:
        """Implement `Span.set`."""
        self.span.set_attributes(self._mask.mask(attributes))

    def rename(self, name: str) -> None:
        """Implement `Span.rename`."""
        self.span.update_name(name)

    def end(self, error: str = "") -> None:
        """Implement `Span.end`."""
        if error:
            self.span.set_attribute("error.type", error)
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class OtlpTracer:
    """A `Tracer` that exports in a thread of its own. What the collector does not take in time is dropped."""

    def __init__(
        self, endpoint: str, *, mask: SecretMask, role: str, version: str, captures_content: bool = False
    ) -> None:
        """Start to export.

        Args:
            endpoint: Base address of the collector, such as `http://127.0.0.1:4318`.
            mask: Masks the service's own secrets in the facts.
            role: What this process does.
            version: Version of the service.
            captures_content: See `Tracer.captures_content`.
        """
        self.captures_content = captures_content
        self._mask = mask
        _limit_warnings()
        resource = Resource.create({SERVICE_VERSION: version, "anker.role": role})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "anker"}))
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=EXPORT_SECONDS)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("anker", version)

    def start(
        self, name: str, kind: SpanKind, attributes: Attributes, *, parent: Span | str, started_at: float | None = None
    ) -> OtlpSpan:
        """Implement `Tracer.start`."""
        at = None if started_at is None else int(started_at * _NANOSECONDS)
        span = self._tracer.start_span(
            name,
            context=_context_of(parent),
            kind=_KINDS[kind],
            attributes=self._mask.mask(attributes),
            start_time=at,
        )
        return OtlpSpan(span, self._mask)

    async def close(self) -> None:
        """Export what is left, for a short time."""
        # Not in the loop's threads, for which the interpreter waits at its end.
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=shut_down, name="span-shutdown", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await ended.wait()
        except TimeoutError:
            log.warning("the last spans could not be exported in time")
            self._exporter.shutdown()


def _context_of(parent: Span | str) -> Context:
    """Return the context of a parent; an empty one, not the current one, if there is none."""
    if isinstance(parent, OtlpSpan):
        return trace.set_span_in_context(parent.span, Context())
    traceparent = parent if isinstance(parent, str) else parent.traceparent
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())


class _Forwarder(logging.Handler):
    """Forwards at most one warning of the SDK a minute, without its details, which may contain addresses."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last: float | None = None
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if self._last is not None and now - self._last < WARNING_SECONDS:
            self._dropped += 1
            return
        self._last = now
        # `msg` is the text without its arguments. The SDK's own logger names tell which part failed.
        log.warning(
            "spans are lost: the collector does not take them; check OTEL_EXPORTER_OTLP_ENDPOINT",
            extra={"part": record.name, "repeated": self._dropped},
        )
        self._dropped = 0


def _limit_warnings() -> None:
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers[:] = [_Forwarder()]
    sdk.propagate = False
    sdk.setLevel(logging.WARNING)
