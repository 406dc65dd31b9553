"""An OpenTelemetry collector for tests: receives spans by OTLP over HTTP on a loopback port, and keeps them."""

import gzip
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it was received."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    role: str
    """The part of the service that sent it."""
    is_error: bool
    message: str
    """Text of the status."""
    attributes: Mapping[str, Any]


class Collector:
    """A context manager that runs the collector in a thread."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        """The body of each request, unpacked."""
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.headers.append(dict(self.headers))
                collector.bodies.append(body)
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        """The value for `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans, in the order in which they ended."""
        received: list[ReceivedSpan] = []
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                facts = {each.key: _plain(each.value) for each in resource.resource.attributes}
                received += [
                    ReceivedSpan(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        facts.get("anker.role", ""),
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        span.status.message,
                        {each.key: _plain(each.value) for each in span.attributes},
                    )
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
        return received

    def named(self, name: str) -> list[ReceivedSpan]:
        """Return the spans whose names begin with `name`."""
        return [span for span in self.spans if span.name.startswith(name)]


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)
