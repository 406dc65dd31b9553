"""The part of the composition root that observes the service: the monitor of the runs, and the tracer behind it."""

import os
from collections.abc import Collection
from contextlib import AsyncExitStack
from urllib.parse import unquote

from app.application.run_monitor import RunMonitor
from app.domain.external.telemetry import NO_TRACER, Tracer
from app.infrastructure.secrets.known_secrets import KnownSecrets
from app.interfaces.metrics import Metrics
from app.settings import Role, Settings, environment

VERSION = "0.1.0"
"""Version of the service."""


def open_monitor(
    settings: Settings,
    metrics: Metrics,
    secrets: KnownSecrets,
    tools: Collection[str],
    stack: AsyncExitStack,
    *,
    role: Role,
) -> RunMonitor:
    """Return the monitor of the runs. `tools`: the functions to count by their names."""
    metrics.build = {"version": VERSION, "role": role}
    return RunMonitor(metrics.runs, _tracer(settings, secrets, stack, role=role), functions=tools)


def _tracer(settings: Settings, secrets: KnownSecrets, stack: AsyncExitStack, *, role: Role) -> Tracer:
    if not (endpoint := settings.otel_exporter_otlp_endpoint):
        return NO_TRACER
    # The SDK reads its variables from the environment only.
    for name, value in environment().items():
        if name.startswith("OTEL_"):
            os.environ.setdefault(name, value)
    for header in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(","):
        for value in unquote(header.partition("=")[2]).split():  # a scheme, such as Bearer, and a token
            secrets.add({} if value in ("Basic", "Bearer") else {"OTEL_EXPORTER_OTLP_HEADERS": value})
    # Imported here: the SDK takes 0.2 s and 20 MB, which a start without it should not pay.
    from app.infrastructure.otlp_tracer import OtlpTracer

    captures = settings.otel_instrumentation_genai_capture_message_content
    tracer = OtlpTracer(endpoint, mask=secrets, role=role, version=VERSION, captures_content=captures)
    stack.push_async_callback(tracer.close)
    return tracer


def describe(settings: Settings, sandbox: str, model: str) -> str:
    """Return the line for the operator that says which adapters are in use."""
    store = "MongoDB" if settings.mongodb_url.get_secret_value() else f"SQLite in {settings.data_dir}"
    redis = ", with Redis" if settings.redis_url.get_secret_value() else ""
    return f"store: {store}{redis}; sandbox: {sandbox}; model: {model}"
