"""The composition root: the one place that sees every layer, chooses the adapters, opens and closes them."""

import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypedDict

import httpx

from app.application.services.chat import ChatService
from app.application.services.desktop import DesktopService
from app.application.services.runs import RunService
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import SessionService
from app.application.services.streams import EventStreams
from app.application.services.tickets import TicketService
from app.domain.external.browser import Browsers
from app.domain.external.llm import LLM
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.external.search import SearchEngine
from app.domain.external.signals import Signals
from app.domain.models.event import EventRecord
from app.domain.services.flows.plan_act import FlowParts
from app.domain.services.tools.base import Tool
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.browser.browsers import PlaywrightBrowsers
from app.infrastructure.llm.demo import DemoModel
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.persistence.mongo import MongoStore
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.infrastructure.persistence.sqlite.writer import OnCommitted
from app.infrastructure.queue.inline import InlineRunQueue
from app.infrastructure.queue.leased import LeasedRunQueue
from app.infrastructure.sandbox.detect import docker_answers, has_chromium
from app.infrastructure.sandbox.docker.egress import parse_egress
from app.infrastructure.sandbox.docker.provider import DockerOptions, DockerSandboxes
from app.infrastructure.sandbox.local import LocalSandboxes
from app.infrastructure.sandbox.privacy import hide_process
from app.infrastructure.sandbox.refused import REAL_MODEL_UNISOLATED, RefusedSandboxes
from app.infrastructure.sandbox.remote import RemoteSandboxes
from app.infrastructure.search.ddgs import DdgsSearch
from app.infrastructure.search.google import GoogleSearch
from app.infrastructure.streams.memory.feed import MemoryFeed
from app.infrastructure.streams.memory.signals import LocalSignals
from app.infrastructure.streams.polling import PollingFeed
from app.infrastructure.streams.redis import RedisBus, RedisFeed, RedisSignals
from app.interfaces.api.services import Services
from app.interfaces.metrics import Metrics
from app.interfaces.wire import encode_event, screenshot_address
from app.settings import ONE_PROCESS_ONLY, Role, Settings, UnusableSetting

log = logging.getLogger(__name__)


class Overrides(TypedDict, total=False):
    """Parts that a test, or an embedding program, brings itself; what it leaves out is chosen by the settings."""

    model: LLM
    sandboxes: SandboxProvider
    browsers: Browsers
    engine: SearchEngine
    tools: Mapping[str, Tool]
    heartbeat: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Everything that is open while the service runs."""

    services: Services
    queue: RunQueue
    description: str
    """What is used, in words for the operator."""


Store = SqliteStore | MongoStore
AnyFeed = MemoryFeed | PollingFeed


@asynccontextmanager
async def open_container(
    settings: Settings, overrides: Overrides, metrics: Metrics, *, role: Role = "all"
) -> AsyncGenerator[Container, None]:
    """Open the parts in the order in which they need each other; close them the other way round, runs before stores.

    Raises:
        StoreUnavailable: the store cannot be opened.
        UnusableSetting: a setting cannot be used.
    """
    async with AsyncExitStack() as stack:

        def on_committed(session_id: str, records: Sequence[EventRecord]) -> None:
            feed.publish(session_id, records)
            metrics.stored(records)

        store = await stack.enter_async_context(_store(settings, on_committed))
        bus = await _bus(settings, store, stack)
        feed = await _feed(store, bus, stack)
        model, model_words = _model(settings, overrides, role=role)
        stack.push_async_callback(model.close)
        sandboxes, sandbox_words = await _sandboxes(settings, overrides, store, role=role)
        stack.push_async_callback(sandboxes.close)
        browsers = overrides.get("browsers") or PlaywrightBrowsers(sandboxes)
        stack.push_async_callback(browsers.close)
        screenshots = ScreenshotService(
            sessions=store.sessions, screenshots=store.screenshots, address=screenshot_address
        )
        engine = await _engine(settings, overrides, stack)
        parts = FlowParts(event_log=store.event_log, feed=feed, model=model, tools=overrides.get("tools", EXECUTING))
        runs = RunService(parts=parts, sandboxes=sandboxes, browsers=browsers, screenshots=screenshots, engine=engine)
        signals = LocalSignals() if bus is None else RedisSignals(bus)
        queue = await _queue(store, runs, signals, role=role)
        stack.push_async_callback(queue.close)
        stack.callback(feed.close)
        opened = _Opened(
            store=store,
            bus=bus,
            feed=feed,
            queue=queue,
            sandboxes=sandboxes,
            browsers=browsers,
            screenshots=screenshots,
        )
        services = _services(opened, metrics, heartbeat=overrides.get("heartbeat", 15.0))
        where = f"SQLite in {settings.data_dir}" if isinstance(store, SqliteStore) else "MongoDB"
        words = f"store: {where}{'' if bus is None else ', with Redis'}; sandbox: {sandbox_words}; model: {model_words}"
        yield Container(services=services, queue=queue, description=words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What the use cases stand on."""

    store: Store
    bus: RedisBus | None
    feed: AnyFeed
    queue: RunQueue
    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: ScreenshotService


def _store(settings: Settings, on_committed: OnCommitted) -> Store:
    if url := settings.mongodb_url.get_secret_value():
        return MongoStore(url, settings.mongodb_database, encode=encode_event, on_committed=on_committed)
    return SqliteStore(settings.data_dir, encode=encode_event, on_committed=on_committed)


async def _bus(settings: Settings, store: Store, stack: AsyncExitStack) -> RedisBus | None:
    if not (url := settings.redis_url.get_secret_value()):
        return None
    try:
        return await stack.enter_async_context(RedisBus(url, prefix=f"anker:{store.installation}"))
    except ValueError as error:
        raise UnusableSetting(f"REDIS_URL: {error}") from None


async def _feed(store: Store, bus: RedisBus | None, stack: AsyncExitStack) -> AnyFeed:
    if bus is None and isinstance(store, SqliteStore):
        return MemoryFeed()
    hub, heads = MemoryFeed(alone=False), store.sessions.last_event_numbers
    return await stack.enter_async_context(PollingFeed(hub, heads) if bus is None else RedisFeed(hub, bus, heads))


async def _queue(store: Store, runs: RunService, signals: Signals, *, role: Role) -> RunQueue:
    if isinstance(store, SqliteStore):
        inline = InlineRunQueue(runs)
        for session_id in await store.sessions.list_active():
            log.info("a run that was cut short goes on", extra={"session_id": session_id})
            inline.resume(session_id)
        return inline
    # Told apart in the store by a person; never the same twice.
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    leased = LeasedRunQueue(runs, store.leases, signals, holder=holder, takes_runs=role != "api")
    leased.start()
    return leased


def _services(opened: _Opened, metrics: Metrics, *, heartbeat: float) -> Services:
    store, feed, queue, sandboxes = opened.store, opened.feed, opened.queue, opened.sandboxes
    streams = EventStreams(store.event_log, feed)
    desktop = DesktopService(sessions=store.sessions, sandboxes=sandboxes, feed=feed)
    return Services(
        chat=ChatService(sessions=store.sessions, event_log=store.event_log, streams=streams, feed=feed, queue=queue),
        sessions=SessionService(
            sessions=store.sessions,
            event_log=store.event_log,
            streams=streams,
            feed=feed,
            queue=queue,
            sandboxes=sandboxes,
            browsers=opened.browsers,
        ),
        screenshots=opened.screenshots,
        desktop=desktop,
        tickets=TicketService(sessions=store.sessions, tickets=store.tickets),
        checks={
            "store": store.sessions.check,
            **({} if opened.bus is None else {"redis": opened.bus.check}),
            "sandbox": sandboxes.check,
        },
        end_streams=feed.close,
        metrics=metrics,
        gauges={
            "runs_active": lambda: queue.active,
            "streams_open": lambda: feed.followers - desktop.viewers,
            "viewers_open": lambda: desktop.viewers,
        },
        heartbeat=heartbeat,
    )


def _model(settings: Settings, overrides: Overrides, *, role: Role) -> tuple[LLM, str]:
    if (given := overrides.get("model")) is not None:
        return given, "given"
    if settings.model_provider == "demo":
        return DemoModel(), "the demo, scripted and offline (set API_KEY for a real one)"
    model = OpenAIModel(
        api_key=settings.api_key.get_secret_value(),
        base_url=settings.api_base,
        model=settings.model_name,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        timeout_seconds=settings.llm_timeout_seconds,
    )
    if role != "api":
        model.warm_up()
    return model, f"{settings.model_name} at {settings.api_base}"


async def _sandboxes(
    settings: Settings, overrides: Overrides, store: Store, *, role: Role
) -> tuple[SandboxProvider, str]:
    if (given := overrides.get("sandboxes")) is not None:
        return given, "given"
    match settings.sandbox_provider:
        case "remote":
            remote = RemoteSandboxes(settings.sandbox_address, settings.sandbox_token.get_secret_value())
            return remote, f"one for all, at {settings.sandbox_address}"
        case "local":
            log.warning("SANDBOX_PROVIDER=local: the model's commands run on this machine as your user, unisolated")
        case "docker":
            return await _docker(settings, store, role=role)
        case "auto":
            if await docker_answers(os.environ):
                return await _docker(settings, store, role=role)
            if not isinstance(store, SqliteStore):
                raise UnusableSetting(ONE_PROCESS_ONLY)
            if settings.model_provider != "demo":
                log.warning(REAL_MODEL_UNISOLATED)
                return RefusedSandboxes(REAL_MODEL_UNISOLATED), "none (see the warning)"
            log.warning("no Docker here: the demo model's commands run on this machine as your user, unisolated")
    local = LocalSandboxes(settings.data_dir, ttl_minutes=settings.sandbox_ttl_minutes)
    hide_process()
    await local.start()
    if strays := await local.sweep(await store.sessions.list_ids()):
        log.info("removed %d workspaces of sessions that were deleted", strays)
    browser = "" if has_chromium() else ", without a browser: there is no Chromium here"
    return local, f"processes on this machine, unisolated{browser}"


async def _docker(settings: Settings, store: Store, *, role: Role) -> tuple[SandboxProvider, str]:
    try:
        egress = parse_egress(settings.sandbox_egress)
    except ValueError as error:
        raise UnusableSetting(f"SANDBOX_EGRESS: {error}") from None
    options = DockerOptions(
        image=settings.sandbox_image,
        name_prefix=settings.sandbox_name_prefix,
        network=settings.sandbox_network,
        ttl_minutes=settings.sandbox_ttl_minutes,
        # A pool is of use to who made it, and runs begin in the workers.
        pool_size=0 if role == "api" else settings.sandbox_pool_size,
        memory=settings.sandbox_memory,
        cpus=settings.sandbox_cpus,
        egress=egress,
        sudo=settings.sandbox_sudo,
        runtime=settings.sandbox_runtime,
    )
    docker = DockerSandboxes(options, installation=store.installation, known=store.sessions.last_event_numbers)
    await docker.start()
    return docker, f"Docker containers of {settings.sandbox_image}"


async def _engine(settings: Settings, overrides: Overrides, stack: AsyncExitStack) -> SearchEngine:
    if (given := overrides.get("engine")) is not None:
        return given
    if settings.search_provider == "google" or (settings.search_provider == "auto" and settings.has_google_keys):
        client = await stack.enter_async_context(httpx.AsyncClient())
        key = settings.google_search_api_key.get_secret_value()
        return GoogleSearch(client, api_key=key, engine_id=settings.google_search_engine_id)
    engine = DdgsSearch()
    stack.push_async_callback(engine.close)
    return engine
