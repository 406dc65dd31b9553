"""The composition root: choose the adapters, wire them to the use cases, open and close everything.

Four tables name what can be chosen: `LLM_PROVIDERS`, `SEARCH_ENGINES`, `SANDBOX_PROVIDERS` here, and `TOOLKITS` in
`app/domain/services/tools/registry.py`. A new adapter is one file and one line in its table (see docs/extending.md).
"""

import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypedDict, TypeVar

from pydantic import SecretStr

from app.application.services.chat import ChatService
from app.application.services.delete_session import DeleteSession
from app.application.services.desktop import DesktopService
from app.application.services.inspect_sandbox import SandboxInspector
from app.application.services.run_worker import PlanActWorker
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import SessionService
from app.application.services.stop_run import StopRun
from app.application.services.streams import EventStreams
from app.application.services.tickets import TicketService
from app.domain.external.browser import Browsers
from app.domain.external.llm import LLM
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.external.search import SearchEngine
from app.domain.external.signals import Signals
from app.domain.models.event import EventRecord
from app.domain.services.flows.plan_act import FlowDependencies
from app.domain.services.tools.base import Tool
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.browser.browsers import PlaywrightBrowsers
from app.infrastructure.llm.demo import DemoModel
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.persistence.group_commit import OnCommitted
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.infrastructure.queue.inline import InlineRunQueue
from app.infrastructure.queue.leased_queue import LeasedRunQueue
from app.infrastructure.sandbox.auto import REAL_MODEL_UNISOLATED, UnavailableSandboxes, choose_provider
from app.infrastructure.sandbox.docker.container_spec import DockerOptions
from app.infrastructure.sandbox.docker.network.egress import parse_egress
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from app.infrastructure.sandbox.local.privacy import hide_process
from app.infrastructure.sandbox.local.provider import LocalSandboxes, has_chromium
from app.infrastructure.sandbox.remote import RemoteSandboxes
from app.infrastructure.search.ddgs import DdgsSearch
from app.infrastructure.search.google import GoogleSearch
from app.infrastructure.streams.memory import LocalSignals, MemoryFeed
from app.infrastructure.streams.polling import PollingFeed
from app.interfaces.api.services import Services
from app.interfaces.metrics import Metrics
from app.interfaces.wire import encode_event, screenshot_address
from app.settings import ONE_PROCESS_ONLY, Role, Settings, UnusableSetting

if TYPE_CHECKING:
    from app.infrastructure.persistence.mongo.store import MongoStore
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryContext:
    """What a provider's factory may use: the settings, what this process does, and the open store."""

    settings: Settings
    role: Role
    store: "Store"


F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Provider(Generic[F]):
    """An entry of a provider table: how to create the adapter, and the settings that must not be empty for it.

    A factory returns the adapter and its description in the service's start message.
    """

    create: F
    needs: tuple[str, ...] = ()


Store: TypeAlias = "SqliteStore | MongoStore"
AnyFeed = MemoryFeed | PollingFeed
LLMFactory = Callable[[FactoryContext], tuple[LLM, str]]
SearchFactory = Callable[[FactoryContext], SearchEngine]
SandboxFactory = Callable[[FactoryContext], Awaitable[tuple[SandboxProvider, str]]]


def _openai_model(context: FactoryContext) -> tuple[LLM, str]:
    settings = context.settings
    model = OpenAIModel(
        api_key=settings.api_key.get_secret_value(),
        base_url=settings.api_base,
        model=settings.model_name,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        timeout_seconds=settings.llm_timeout_seconds,
    )
    if context.role != "api":
        model.warm_up()
    return model, f"{settings.model_name} at {settings.api_base}"


def _demo_model(_: FactoryContext) -> tuple[LLM, str]:
    return DemoModel(), "the demo, scripted and offline (set API_KEY for a real one)"


LLM_PROVIDERS: dict[str, Provider[LLMFactory]] = {
    "openai": Provider(_openai_model, needs=("api_key",)),
    "demo": Provider(_demo_model),
}
"""Values of `LLM_PROVIDER`. When it is empty, `Settings.model_provider` chooses one of these."""


def _google_search(context: FactoryContext) -> SearchEngine:
    settings = context.settings
    return GoogleSearch(
        api_key=settings.google_search_api_key.get_secret_value(), engine_id=settings.google_search_engine_id
    )


def _ddgs_search(_: FactoryContext) -> SearchEngine:
    return DdgsSearch()


def _auto_search(context: FactoryContext) -> SearchEngine:
    return _google_search(context) if context.settings.has_google_keys else _ddgs_search(context)


SEARCH_ENGINES: dict[str, Provider[SearchFactory]] = {
    "auto": Provider(_auto_search),
    "google": Provider(_google_search, needs=("google_search_api_key", "google_search_engine_id")),
    "ddgs": Provider(_ddgs_search),
}
"""Values of `SEARCH_PROVIDER`."""


async def _auto_sandboxes(context: FactoryContext) -> tuple[SandboxProvider, str]:
    choice = await choose_provider(os.environ, demo_model=context.settings.model_provider == "demo")
    if choice == "docker":
        return await _docker_sandboxes(context)
    if not isinstance(context.store, SqliteStore):
        raise UnusableSetting(ONE_PROCESS_ONLY)
    if choice == "local":
        return await _local_sandboxes(context)
    log.warning(REAL_MODEL_UNISOLATED)
    return UnavailableSandboxes(REAL_MODEL_UNISOLATED), "none (see the warning)"


async def _docker_sandboxes(context: FactoryContext) -> tuple[SandboxProvider, str]:
    settings, store = context.settings, context.store
    try:
        egress = parse_egress(settings.sandbox_egress)
    except ValueError as error:
        raise UnusableSetting(f"SANDBOX_EGRESS: {error}") from None
    options = DockerOptions(
        image=settings.sandbox_image,
        name_prefix=settings.sandbox_name_prefix,
        network=settings.sandbox_network,
        ttl_minutes=settings.sandbox_ttl_minutes,
        # Only the process that fills a pool can use it, and an API process starts no sandboxes.
        pool_size=0 if context.role == "api" else settings.sandbox_pool_size,
        memory=settings.sandbox_memory,
        cpus=settings.sandbox_cpus,
        egress=egress,
        sudo=settings.sandbox_sudo,
        runtime=settings.sandbox_runtime,
    )
    docker = DockerSandboxes(options, installation=store.installation, existing=store.sessions.last_event_numbers)
    await docker.start()
    return docker, f"Docker containers of {settings.sandbox_image}"


async def _local_sandboxes(context: FactoryContext) -> tuple[SandboxProvider, str]:
    settings = context.settings
    log.warning("sandboxes are local: the model's commands run on this machine as your user, unisolated")
    local = LocalSandboxes(settings.data_dir, ttl_minutes=settings.sandbox_ttl_minutes)
    hide_process()
    await local.start()
    if removed := await local.sweep(await context.store.sessions.list_ids()):
        log.info("removed %d workspaces of deleted sessions", removed)
    browser = "" if has_chromium() else ", without a browser (no Chromium found)"
    return local, f"processes on this machine, unisolated{browser}"


async def _remote_sandboxes(context: FactoryContext) -> tuple[SandboxProvider, str]:
    address, token = context.settings.sandbox_address, context.settings.sandbox_token.get_secret_value()
    return RemoteSandboxes(address, token), f"one for all sessions, at {address}"


SANDBOX_PROVIDERS: dict[str, Provider[SandboxFactory]] = {
    "auto": Provider(_auto_sandboxes),
    "docker": Provider(_docker_sandboxes),
    "local": Provider(_local_sandboxes),
    "remote": Provider(_remote_sandboxes, needs=("sandbox_address",)),
}
"""Values of `SANDBOX_PROVIDER`."""


def check_providers(settings: Settings) -> None:
    """Check that the tables hold the providers that the settings name, and that what they need is set.

    Raises:
        UnusableSetting: A provider is unknown, or a setting that it needs is empty.
    """
    chosen = (
        ("LLM_PROVIDER", settings.model_provider, LLM_PROVIDERS),
        ("SEARCH_PROVIDER", settings.search_provider, SEARCH_ENGINES),
        ("SANDBOX_PROVIDER", settings.sandbox_provider, SANDBOX_PROVIDERS),
    )
    for variable, name, table in chosen:
        if name not in table:
            raise UnusableSetting(f"{variable}: must be one of {', '.join(table)}")
        for needed in table[name].needs:
            value: object = getattr(settings, needed)
            if not (value.get_secret_value() if isinstance(value, SecretStr) else value):
                raise UnusableSetting(f"{needed.upper()}: {variable}={name} needs it")


@asynccontextmanager
async def open_service(
    settings: Settings, overrides: Overrides, metrics: Metrics, *, role: Role = "all"
) -> AsyncGenerator[RunningService, None]:
    """Open every part after the parts that it uses; close them in reverse order, runs before stores.

    Raises:
        StoreUnavailable: The store cannot be opened.
        UnusableSetting: A setting cannot be used.
    """
    check_providers(settings)
    async with AsyncExitStack() as stack:

        def on_committed(session_id: str, records: Sequence[EventRecord]) -> None:
            feed.publish(session_id, records)
            metrics.count_events(records)

        store = await stack.enter_async_context(_store(settings, on_committed))
        redis = await _redis(settings, store, stack)
        feed, signals = await _feed_and_signals(store, redis, stack)
        context = FactoryContext(settings=settings, role=role, store=store)
        model, model_description = _model(context, overrides)
        stack.push_async_callback(model.close)
        sandboxes, sandbox_description = await _sandboxes(context, overrides)
        stack.push_async_callback(sandboxes.close)
        browsers = overrides.get("browsers") or PlaywrightBrowsers(sandboxes)
        stack.push_async_callback(browsers.close)
        screenshots = ScreenshotService(
            sessions=store.sessions, screenshots=store.screenshots, address=screenshot_address
        )
        engine = overrides.get("engine") or SEARCH_ENGINES[settings.search_provider].create(context)
        stack.push_async_callback(engine.close)
        dependencies = FlowDependencies(
            event_log=store.event_log, feed=feed, model=model, tools=overrides.get("tools", EXECUTING)
        )
        worker = PlanActWorker(
            dependencies=dependencies, sandboxes=sandboxes, browsers=browsers, screenshots=screenshots, engine=engine
        )
        queue = await _queue(store, worker, signals, role=role)
        stack.push_async_callback(queue.close)
        stack.callback(feed.close)
        opened = _Opened(
            store=store,
            redis=redis,
            feed=feed,
            queue=queue,
            sandboxes=sandboxes,
            browsers=browsers,
            screenshots=screenshots,
        )
        services = _services(opened, metrics, heartbeat=overrides.get("heartbeat", 15.0))
        where = f"SQLite in {settings.data_dir}" if isinstance(store, SqliteStore) else "MongoDB"
        with_redis = "" if redis is None else ", with Redis"
        description = f"store: {where}{with_redis}; sandbox: {sandbox_description}; model: {model_description}"
        yield RunningService(services=services, description=description)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """The open parts that the use cases are built from."""

    store: Store
    redis: "RedisConnection | None"
    feed: AnyFeed
    queue: RunQueue
    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: ScreenshotService


def _store(settings: Settings, on_committed: OnCommitted) -> Store:
    if url := settings.mongodb_url.get_secret_value():
        # Imported here: MongoDB's clients take 0.2 s to load, which a start without them should not pay.
        from app.infrastructure.persistence.mongo.store import MongoStore

        return MongoStore(url, settings.mongodb_database, encode=encode_event, on_committed=on_committed)
    return SqliteStore(settings.data_dir, encode=encode_event, on_committed=on_committed)


async def _redis(settings: Settings, store: Store, stack: AsyncExitStack) -> "RedisConnection | None":
    if not (url := settings.redis_url.get_secret_value()):
        return None
    # Imported here because it loads redis-py, which takes a while.
    from app.infrastructure.streams.redis.connection import RedisConnection

    try:
        return await stack.enter_async_context(RedisConnection(url, prefix=f"anker:{store.installation}"))
    except ValueError as error:
        raise UnusableSetting(f"REDIS_URL: {error}") from None


async def _feed_and_signals(
    store: Store, redis: "RedisConnection | None", stack: AsyncExitStack
) -> tuple[AnyFeed, Signals]:
    if redis is None and isinstance(store, SqliteStore):
        return MemoryFeed(), LocalSignals()
    hub, last_event_numbers = MemoryFeed(single_process=False), store.sessions.last_event_numbers
    if redis is None:
        return await stack.enter_async_context(PollingFeed(hub, last_event_numbers)), LocalSignals()
    from app.infrastructure.streams.redis.feed import RedisFeed, RedisSignals

    return await stack.enter_async_context(RedisFeed(hub, redis, last_event_numbers)), RedisSignals(redis)


async def _queue(store: Store, worker: PlanActWorker, signals: Signals, *, role: Role) -> RunQueue:
    if isinstance(store, SqliteStore):
        inline = InlineRunQueue(worker)
        for session_id in await store.sessions.list_active():
            log.info("resuming an interrupted run", extra={"session_id": session_id})
            inline.resume(session_id)
        return inline
    # Unique for each process, and readable for an operator who looks into the store.
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    leased = LeasedRunQueue(worker, store.leases, signals, holder=holder, takes_runs=role != "api")
    leased.start()
    return leased


def _services(opened: _Opened, metrics: Metrics, *, heartbeat: float) -> Services:
    store, feed, queue, sandboxes = opened.store, opened.feed, opened.queue, opened.sandboxes
    streams = EventStreams(store.event_log, feed)
    desktop = DesktopService(sessions=store.sessions, sandboxes=sandboxes, feed=feed)
    return Services(
        chat=ChatService(sessions=store.sessions, event_log=store.event_log, streams=streams, feed=feed, queue=queue),
        sessions=SessionService(sessions=store.sessions, streams=streams, feed=feed),
        stop_run=StopRun(sessions=store.sessions, queue=queue),
        delete_session=DeleteSession(
            sessions=store.sessions, queue=queue, feed=feed, browsers=opened.browsers, sandboxes=sandboxes
        ),
        inspect_sandbox=SandboxInspector(sessions=store.sessions, sandboxes=sandboxes),
        screenshots=opened.screenshots,
        desktop=desktop,
        tickets=TicketService(sessions=store.sessions, tickets=store.tickets),
        checks={
            "store": store.sessions.check,
            **({} if opened.redis is None else {"redis": opened.redis.check}),
            "sandbox": sandboxes.check,
        },
        end_streams=feed.close,
        metrics=metrics,
        gauges={
            "runs_active": lambda: queue.active,
            "streams_open": lambda: feed.subscriber_count - desktop.viewers,
            "viewers_open": lambda: desktop.viewers,
        },
        heartbeat=heartbeat,
    )


def _model(context: FactoryContext, overrides: Overrides) -> tuple[LLM, str]:
    if (given := overrides.get("model")) is not None:
        return given, "given"
    return LLM_PROVIDERS[context.settings.model_provider].create(context)


async def _sandboxes(context: FactoryContext, overrides: Overrides) -> tuple[SandboxProvider, str]:
    if (given := overrides.get("sandboxes")) is not None:
        return given, "given"
    return await SANDBOX_PROVIDERS[context.settings.sandbox_provider].create(context)
