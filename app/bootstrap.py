"""The composition root: wire the adapters to the use cases, open everything and close it again.

`app/providers.py` has the tables of the adapters that the settings can name.
"""

import logging
import os
import platform
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import TYPE_CHECKING, TypedDict

from app.application.observed_model import ObservedModel
from app.application.process_monitor import monitor_process
from app.application.run_monitor import RunMonitor
from app.application.services.audit import AuditTrail
from app.application.services.chat import ChatService
from app.application.services.desktop import DesktopService
from app.application.services.desktop_links import DesktopLinks
from app.application.services.export import ExportService
from app.application.services.inspect_sandbox import SandboxInspector
from app.application.services.limits import LimitService
from app.application.services.rates import RateService
from app.application.services.run_worker import PlanActWorker
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import SessionService
from app.application.services.streams import EventStreams
from app.application.services.tickets import TicketService
from app.domain.external.authenticator import Authenticator
from app.domain.external.browser import Browsers
from app.domain.external.llm import LLM, ModelCatalog
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.external.search import SearchEngine
from app.domain.external.signals import Signals
from app.domain.models.event import EventRecord
from app.domain.services.agents.limits import RunLimits
from app.domain.services.flows.plan_act import FlowDependencies
from app.domain.services.tools.base import Tool
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.browser.browsers import PlaywrightBrowsers
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.queue.supervisor import InlineRunQueue
from app.infrastructure.secrets.known_secrets import KnownSecrets
from app.infrastructure.secrets.masked_event_log import MaskedEventLog
from app.infrastructure.streams.memory import LocalSignals, MemoryFeed
from app.infrastructure.streams.polling import PollingFeed
from app.interfaces.api.services import Services
from app.interfaces.metrics import Gauges, Metrics
from app.interfaces.wire import WIRE_VIEWS, WireView, screenshot_address
from app.model_config import planner_of
from app.observability import VERSION, describe, open_monitor
from app.providers import (
    LLM_PROVIDERS,
    SANDBOX_PROVIDERS,
    SEARCH_ENGINES,
    FactoryContext,
    Store,
    check_providers,
    choose_store,
    open_limits,
    open_redis,
)
from app.settings import Role, Settings, UnusableSetting

if TYPE_CHECKING:
    from app.infrastructure.streams.redis.connection import RedisConnection

log = logging.getLogger(__name__)


class Overrides(TypedDict, total=False):
    """Parts that a test or an embedding program passes in; the settings choose the others."""

    model: LLM
    sandboxes: SandboxProvider
    browsers: Browsers
    engine: SearchEngine
    tools: Mapping[str, Tool]
    heartbeat: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    """The open service: its use cases, and a line for the operator that says which adapters it uses."""

    services: Services
    description: str


@asynccontextmanager
async def open_service(
    settings: Settings,
    overrides: Overrides,
    metrics: Metrics,
    *,
    secrets: KnownSecrets,
    role: Role = "all",
    login: Authenticator | None = None,
) -> AsyncGenerator[RunningService, None]:
    """Open every part after the parts that it uses; close them in reverse order, runs before stores.

    Args:
        settings: The settings.
        overrides: Parts that replace those which the settings choose.
        metrics: Where everything is counted.
        secrets: The mask of the secrets in `settings`. Those that the service makes itself are added.
        role: What this process does.
        login: How its clients log in; closed with the rest. None for a process that serves no requests.

    Raises:
        StoreUnavailable: The store cannot be opened.
        UnusableSetting: A setting cannot be used.
    """
    check_providers(settings)
    async with AsyncExitStack() as stack:
        parts = await _open_parts(settings, overrides, metrics, secrets, stack, role)
        view = WIRE_VIEWS[settings.wire_compat]
        services = _services(parts, settings, metrics, heartbeat=overrides.get("heartbeat", 15.0), view=view)
        if login is not None:
            stack.push_async_callback(login.close)
            checks = {**services.checks, "login": login.check} if settings.auth_mode == "oidc" else services.checks
            services = replace(services, auth_provider=settings.auth_mode, checks=checks)
        await stack.enter_async_context(monitor_process(metrics.process, services.checks))
        yield RunningService(services=services, description=parts.description)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    """The store of the sessions, how their readers learn of changes, and the limits of their owners."""

    store: Store
    audit: AuditTrail
    event_log: MaskedEventLog
    redis: "RedisConnection | None"
    feed: MemoryFeed
    signals: Signals
    limits: LimitService
    rates: RateService


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The open parts that the use cases are built from."""

    store: Store
    audit: AuditTrail
    event_log: MaskedEventLog
    redis: "RedisConnection | None"
    feed: MemoryFeed
    models: ModelCatalog
    queue: RunQueue
    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: ScreenshotService
    limits: LimitService
    rates: RateService
    monitor: RunMonitor
    description: str


async def _open_events(settings: Settings, metrics: Metrics, secrets: KnownSecrets, stack: AsyncExitStack) -> _Events:
    def on_committed(session_id: str, records: Sequence[EventRecord]) -> None:
        feed.publish(session_id, records)
        metrics.count_events(records)

    store = await stack.enter_async_context(choose_store(settings, on_committed))
    audit = await stack.enter_async_context(AuditTrail(store.audit, mask=secrets))
    secrets.add({"the signing key": store.signing_key})
    redis = await open_redis(settings, store, stack)
    feed, signals = await _feed_and_signals(store, redis, stack)
    event_log = MaskedEventLog(store.event_log, secrets)
    limits, rates = await open_limits(settings, store, event_log, redis, stack)
    return _Events(
        store=store,
        audit=audit,
        event_log=event_log,
        redis=redis,
        feed=feed,
        signals=signals,
        limits=limits,
        rates=rates,
    )


async def _open_parts(
    settings: Settings, overrides: Overrides, metrics: Metrics, secrets: KnownSecrets, stack: AsyncExitStack, role: Role
) -> _Parts:
    events = await _open_events(settings, metrics, secrets, stack)
    store, event_log, feed = events.store, events.event_log, events.feed
    tools = overrides.get("tools", EXECUTING)
    monitor = open_monitor(settings, metrics, secrets, tools, stack, role=role)
    context = FactoryContext(
        settings=settings, role=role, store=store, secrets=secrets, observe=metrics.observe_model, monitor=monitor
    )
    models, model_description = _models(context, overrides)
    stack.push_async_callback(models.close)
    sandboxes, sandbox_description = await _sandboxes(context, overrides, stack)
    browsers = overrides.get("browsers") or PlaywrightBrowsers(sandboxes)
    stack.push_async_callback(browsers.close)
    screenshots = ScreenshotService(sessions=store.sessions, screenshots=store.screenshots, address=screenshot_address)
    engine = overrides.get("engine") or SEARCH_ENGINES[settings.search_provider].create(context)
    stack.push_async_callback(engine.close)
    dependencies = FlowDependencies(
        event_log=event_log,
        feed=feed,
        models=models,
        mask=secrets,
        tools=tools,
        limits=_run_limits(settings),
        sandboxes=sandboxes,
        browsers=browsers,
        screenshots=screenshots,
        engine=engine,
        observer=monitor,
    )
    queue = await _queue(settings, store, PlanActWorker(dependencies, monitor), events.signals, role=role)
    stack.push_async_callback(queue.close)
    stack.callback(feed.close)
    return _Parts(
        store=store,
        audit=events.audit,
        event_log=event_log,
        redis=events.redis,
        feed=feed,
        models=models,
        queue=queue,
        sandboxes=sandboxes,
        browsers=browsers,
        screenshots=screenshots,
        monitor=monitor,
        limits=events.limits,
        rates=events.rates,
        description=secrets.mask(describe(settings, sandbox_description, model_description)),
    )


def _run_limits(settings: Settings) -> RunLimits:
    return RunLimits(
        max_calls=settings.run_max_calls,
        max_steps=settings.run_max_steps,
        token_budget=settings.run_token_budget,
        tokens_per_day=settings.limit_tokens_per_day,
    )


async def _feed_and_signals(
    store: Store, redis: "RedisConnection | None", stack: AsyncExitStack
) -> tuple[MemoryFeed, Signals]:
    if redis is None and isinstance(store, SqliteStore):
        return MemoryFeed(), LocalSignals()
    last_event_numbers = store.sessions.last_event_numbers
    if redis is None:
        return await stack.enter_async_context(PollingFeed(last_event_numbers)), LocalSignals()
    from app.infrastructure.streams.redis.feed import RedisFeed, RedisSignals

    return await stack.enter_async_context(RedisFeed(redis, last_event_numbers)), RedisSignals(redis)


async def _queue(settings: Settings, store: Store, worker: PlanActWorker, signals: Signals, *, role: Role) -> RunQueue:
    max_runs = settings.runs_per_process
    if isinstance(store, SqliteStore):
        inline = InlineRunQueue(worker, max_runs=max_runs)
        for session_id, owner in (await store.sessions.list_active()).items():
            log.info("resuming an interrupted run", extra={"session_id": session_id})
            inline.resume(session_id, owner=owner)
        return inline
    # Unique for each process, and readable for an operator who looks into the store.
    holder = f"{socket.gethostname()}-{os.getpid()}-{token_hex(4)}"
    leased = LeasedRunQueue(worker, store.leases, signals, holder=holder, takes_runs=role != "api", max_runs=max_runs)
    leased.start()
    return leased


def _conversation(parts: _Parts, streams: EventStreams) -> tuple[ChatService, SessionService]:
    store, event_log, feed, queue = parts.store, parts.event_log, parts.feed, parts.queue
    chat = ChatService(
        sessions=store.sessions,
        event_log=event_log,
        streams=streams,
        feed=feed,
        queue=queue,
        models=parts.models,
        limits=parts.limits,
        monitor=parts.monitor,
        audit=parts.audit,
    )
    sessions = SessionService(
        sessions=store.sessions,
        event_log=event_log,
        streams=streams,
        feed=feed,
        queue=queue,
        browsers=parts.browsers,
        sandboxes=parts.sandboxes,
        models=parts.models,
        mask=event_log.mask,
        limits=parts.limits,
        audit=parts.audit,
    )
    return chat, sessions


def _services(parts: _Parts, settings: Settings, metrics: Metrics, *, heartbeat: float, view: WireView) -> Services:
    store, feed, sandboxes, audit = parts.store, parts.feed, parts.sandboxes, parts.audit
    event_log, mask = parts.event_log, parts.event_log.mask
    streams = EventStreams(event_log, feed)
    chat, sessions = _conversation(parts, streams)
    desktop = DesktopService(sessions=store.sessions, sandboxes=sandboxes, feed=feed, audit=audit)
    return Services(
        chat=chat,
        sessions=sessions,
        models=parts.models,
        limits=parts.limits,
        rates=parts.rates,
        inspect_sandbox=SandboxInspector(
            sessions=store.sessions, event_log=event_log, sandboxes=sandboxes, feed=feed, audit=audit, mask=mask
        ),
        screenshots=parts.screenshots,
        desktop=desktop,
        tickets=TicketService(sessions=store.sessions, tickets=store.tickets, audit=audit),
        links=DesktopLinks(sessions=store.sessions, key=store.signing_key.encode(), audit=audit),
        audit=audit,
        export=_export(parts, settings, streams),
        checks={
            "store": store.sessions.check,
            **({} if parts.redis is None else {"redis": parts.redis.check}),
            "sandbox": sandboxes.check,
        },
        end_streams=feed.close,
        metrics=metrics,
        mask=mask,
        gauges=_gauges(parts, desktop),
        tracer=parts.monitor.tracer,
        heartbeat=heartbeat,
        view=view,
    )


def _gauges(parts: _Parts, desktop: DesktopService) -> Gauges:
    return {
        "runs_active": lambda: parts.queue.active,
        "runs_waiting": lambda: parts.queue.waiting,
        "streams_open": lambda: parts.feed.subscriber_count - desktop.viewers,
        "viewers_open": lambda: desktop.viewers,
        "sandboxes": parts.sandboxes.counts,
    }


def _export(parts: _Parts, settings: Settings, streams: EventStreams) -> ExportService:
    store = parts.store
    return ExportService(
        sessions=store.sessions,
        event_log=parts.event_log,
        streams=streams,
        screenshots=store.screenshots,
        sandboxes=parts.sandboxes,
        audit_log=store.audit,
        audit=parts.audit,
        versions={
            "anker": VERSION,
            "python": platform.python_version(),
            "store": store.schema,
            "sandbox_image": settings.sandbox_image,
        },
        max_bytes=settings.export_max_bytes,
    )


def _models(context: FactoryContext, overrides: Overrides) -> tuple[ModelCatalog, str]:
    settings = context.settings
    if (given := overrides.get("model")) is not None:
        return ModelCatalog(models={"default": ObservedModel(given, context.monitor)}, default="default"), "given"
    made, description = LLM_PROVIDERS[settings.model_provider].create(context)
    if isinstance(made, ModelCatalog):
        return made, description
    if settings.models_config:
        raise UnusableSetting(f"MODELS_CONFIG: LLM_PROVIDER={settings.model_provider} does not use it")
    models = {"default": made}
    return ModelCatalog(models=models, default="default", planner=planner_of(settings, models)), description


async def _sandboxes(
    context: FactoryContext, overrides: Overrides, stack: AsyncExitStack
) -> tuple[SandboxProvider, str]:
    sandboxes, description = overrides.get("sandboxes"), "given"
    if sandboxes is None:
        sandboxes, description = await SANDBOX_PROVIDERS[context.settings.sandbox_provider].create(context)
    stack.push_async_callback(sandboxes.close)
    return sandboxes, description
