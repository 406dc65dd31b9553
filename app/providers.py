"""The tables of providers: a name of a setting, and the factory of its adapter.

A new provider is one file with the adapter and one line in a table (see docs/extending.md). The fourth table of this
kind is `TOOLKITS` in `app/domain/services/tools/registry.py`.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.application.observed_model import ObservedModel
from app.application.run_monitor import RunMonitor
from app.application.services.limits import LimitService
from app.application.services.rates import RateService
from app.domain.external.authenticator import Authenticator
from app.domain.external.limits import RateCounter, StreamCounts
from app.domain.external.llm import LLM, ModelCatalog, ModelObserver
from app.domain.external.sandbox import SandboxProvider
from app.domain.external.search import SearchEngine
from app.domain.models.limits import OwnerLimits, RateLimits
from app.domain.models.model_profile import ModelProfile
from app.infrastructure.auth.proxy import ProxyLogin
from app.infrastructure.auth.tokens import NoLogin, TokenLogin
from app.infrastructure.limits.memory import MemoryRateCounter
from app.infrastructure.llm.demo import DEMO_PROFILE, DemoModel
from app.infrastructure.llm.failures import RetryPolicy
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.persistence.group_commit import OnCommitted
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.infrastructure.sandbox.auto import REAL_MODEL_UNISOLATED, UnavailableSandboxes, choose_provider
from app.infrastructure.sandbox.docker.container_spec import DockerOptions
from app.infrastructure.sandbox.docker.network.egress import parse_egress
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from app.infrastructure.sandbox.local.privacy import hide_process
from app.infrastructure.sandbox.local.provider import LocalSandboxes, has_chromium
from app.infrastructure.sandbox.remote import RemoteSandboxes
from app.infrastructure.search.ddgs import DdgsSearch
from app.infrastructure.search.google import GoogleSearch
from app.infrastructure.secrets.known_secrets import KnownSecrets
from app.infrastructure.secrets.masked_event_log import MaskedEventLog
from app.interfaces.wire import encode_event
from app.model_config import ModelOptions, load_models
from app.settings import ONE_PROCESS_ONLY, Role, Settings, UnusableSetting

if TYPE_CHECKING:
    from app.infrastructure.persistence.mongo.store import MongoStore
    from app.infrastructure.streams.redis.connection import RedisConnection

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryContext:
    """The input of a provider's factory."""

    settings: Settings
    role: Role
    """What this process does."""
    store: "Store"
    """The open store."""
    secrets: KnownSecrets
    """Where a provider registers secrets that it makes, to be masked."""
    observe: Callable[[ModelProfile], ModelObserver]
    """Creates the observer of a model, for metrics."""
    monitor: RunMonitor
    """Counts and traces model calls and sandboxes."""


F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Provider(Generic[F]):
    """An entry of a provider table: how to create the adapter, and what to check before.

    A factory returns the adapter and its description in the service's start message.
    """

    create: F
    needs: tuple[str, ...] = ()
    """Settings that must not be empty."""
    check: Callable[[Settings], object] | None = None
    """Raises `UnusableSetting` if the settings cannot be used."""


Store: TypeAlias = "SqliteStore | MongoStore"
LLMFactory = Callable[[FactoryContext], tuple[LLM | ModelCatalog, str]]
"""A factory of one model, which becomes the profile `default`, or of a catalog."""
SearchFactory = Callable[[FactoryContext], SearchEngine]
AuthenticatorFactory = Callable[[Settings], Authenticator]
SandboxFactory = Callable[[FactoryContext], Awaitable[tuple[SandboxProvider, str]]]


def _openai_models(context: FactoryContext) -> tuple[ModelCatalog, str]:
    settings = context.settings
    config = load_models(settings)
    models = {name: _openai_model(options, context) for name, options in config.models.items()}
    default = config.models[config.default]
    if context.role != "api":
        for name in {config.default, config.planner or config.default}:
            models[name].warm_up()
    # Only the host: an address may hold a key.
    description = f"{default.profile.model} at {urlsplit(default.base_url).hostname}"
    if settings.models_config:
        description = f"{config.default}, {description} (models of {settings.models_config}: {', '.join(models)})"
    observed = {
        name: ObservedModel(model, context.monitor, address=config.models[name].base_url)
        for name, model in models.items()
    }
    return ModelCatalog(models=observed, default=config.default, planner=config.planner), description


def _openai_model(options: ModelOptions, context: FactoryContext) -> OpenAIModel:
    return OpenAIModel(
        api_key=options.api_key.get_secret_value(),
        base_url=options.base_url,
        model=options.profile.model,
        profile=options.profile,
        temperature=options.temperature,
        thinking_replay=options.thinking_replay,
        timeout_seconds=options.timeout_seconds,
        retry=RetryPolicy(patience_seconds=context.settings.llm_retry_seconds),
        observer=context.observe(options.profile),
        in_file=bool(context.settings.models_config),
    )


def _demo_model(context: FactoryContext) -> tuple[LLM, str]:
    model = ObservedModel(DemoModel(observer=context.observe(DEMO_PROFILE)), context.monitor)
    return model, "the demo, scripted and offline (set API_KEY for a real one)"


LLM_PROVIDERS: dict[str, Provider[LLMFactory]] = {
    "openai": Provider(_openai_models, check=load_models),
    "demo": Provider(_demo_model),
}
"""Values of `LLM_PROVIDER`. When it is empty, `Settings.model_provider` chooses one of these."""


def _google_search(context: FactoryContext) -> SearchEngine:
    settings = context.settings
    return GoogleSearch(
        api_key=settings.google_search_api_key.get_secret_value(), engine_id=settings.google_search_engine_id
    )


SEARCH_ENGINES: dict[str, Provider[SearchFactory]] = {
    "auto": Provider(lambda context: _google_search(context) if context.settings.has_google_keys else DdgsSearch()),
    "google": Provider(_google_search, needs=("google_search_api_key", "google_search_engine_id")),
    "ddgs": Provider(lambda _: DdgsSearch()),
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
    docker = DockerSandboxes(
        options,
        installation=store.installation,
        existing=store.sessions.last_event_numbers,
        observer=context.monitor,
    )
    docker.on_token = context.secrets.add_passing
    await docker.start()
    return docker, f"Docker containers of {settings.sandbox_image}"


async def _local_sandboxes(context: FactoryContext) -> tuple[SandboxProvider, str]:
    settings = context.settings
    log.warning("sandboxes are local: the model's commands run on this machine as your user, unisolated")
    local = LocalSandboxes(settings.data_dir, ttl_minutes=settings.sandbox_ttl_minutes, observer=context.monitor)
    local.on_token = context.secrets.add_passing
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


def _token_login(settings: Settings) -> Authenticator:
    try:
        return TokenLogin(settings.api_tokens.get_secret_value())
    except ValueError as error:
        raise UnusableSetting(f"API_TOKENS: {error}") from None


def _oidc_login(settings: Settings) -> Authenticator:
    # Imported here because it loads the cryptography, which takes a while.
    from app.infrastructure.auth.oidc import OidcLogin

    try:
        return OidcLogin(issuer=settings.oidc_issuer, audience=settings.oidc_audience)
    except ValueError as error:
        raise UnusableSetting(f"OIDC_ISSUER: {error}") from None


def _proxy_login(settings: Settings) -> Authenticator:
    try:
        return ProxyLogin(header=settings.auth_proxy_header, networks=settings.auth_proxy_from)
    except ValueError as error:
        raise UnusableSetting(str(error)) from None


AUTHENTICATORS: dict[str, Provider[AuthenticatorFactory]] = {
    "none": Provider(lambda _: NoLogin()),
    "tokens": Provider(_token_login, needs=("api_tokens",), check=_token_login),
    "oidc": Provider(_oidc_login, needs=("oidc_issuer", "oidc_audience"), check=_oidc_login),
    "proxy": Provider(_proxy_login, needs=("auth_proxy_header", "auth_proxy_from"), check=_proxy_login),
}
"""Values of `AUTH`. When it is empty, `Settings.auth_mode` chooses one of these."""


def check_providers(settings: Settings) -> None:
    """Check that the tables hold the providers that the settings name, and that what they need is set.

    Raises:
        UnusableSetting: A provider is unknown, or a setting that it needs is empty.
    """
    chosen = (
        ("LLM_PROVIDER", settings.model_provider, LLM_PROVIDERS),
        ("SEARCH_PROVIDER", settings.search_provider, SEARCH_ENGINES),
        ("SANDBOX_PROVIDER", settings.sandbox_provider, SANDBOX_PROVIDERS),
        ("AUTH", settings.auth_mode, AUTHENTICATORS),
    )
    for variable, name, table in chosen:
        if name not in table:
            raise UnusableSetting(f"{variable}: must be one of {', '.join(table)}")
        provider = table[name]
        for needed in provider.needs:
            if not _is_set(settings, needed):
                raise UnusableSetting(f"{needed.upper()}: {variable}={name} needs it")
        if provider.check is not None:
            provider.check(settings)
    _check_unused_logins(settings)


def _check_unused_logins(settings: Settings) -> None:
    """Refuse settings of another way to log in: the operator believes that they protect the service."""
    mode = settings.auth_mode
    unused = [name for other, provider in AUTHENTICATORS.items() if other != mode for name in provider.needs]
    for name in (*unused, *(("auth_admins",) if mode == "none" else ())):
        if _is_set(settings, name):
            raise UnusableSetting(f"{name.upper()}: AUTH={mode} does not use it")


def _is_set(settings: Settings, name: str) -> bool:
    value: object = getattr(settings, name)
    return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def choose_store(settings: Settings, on_committed: OnCommitted = lambda _session_id, _records: None) -> Store:
    """Return the store that the settings choose, which is not open yet. Call it inside a running event loop.

    Raises:
        StoreUnavailable: `MONGODB_URL` or `MONGODB_DATABASE` is invalid.
    """
    if url := settings.mongodb_url.get_secret_value():
        # Imported here: MongoDB's clients take 0.2 s to load, which a start without them should not pay.
        from app.infrastructure.persistence.mongo.store import MongoStore

        return MongoStore(url, settings.mongodb_database, encode=encode_event, on_committed=on_committed)
    return SqliteStore(settings.data_dir, encode=encode_event, on_committed=on_committed)


async def open_redis(settings: Settings, store: Store, stack: AsyncExitStack) -> "RedisConnection | None":
    """Return the connection to Redis, which `stack` closes; None without `REDIS_URL`.

    Raises:
        UnusableSetting: `REDIS_URL` is invalid.
    """
    if not (url := settings.redis_url.get_secret_value()):
        return None
    # Imported here because it loads redis-py, which takes a while.
    from app.infrastructure.streams.redis.connection import RedisConnection

    try:
        return await stack.enter_async_context(RedisConnection(url, prefix=f"anker:{store.installation}"))
    except ValueError as error:
        raise UnusableSetting(f"REDIS_URL: {error}") from None


async def open_limits(
    settings: Settings,
    store: Store,
    event_log: MaskedEventLog,
    redis: "RedisConnection | None",
    stack: AsyncExitStack,
) -> tuple[LimitService, RateService]:
    """Return the limits of the owners, which all processes with the same Redis share. `stack` closes them."""
    counter: RateCounter = MemoryRateCounter()
    others: StreamCounts | None = None
    if redis is not None:
        from app.infrastructure.limits.redis import AnnouncedStreams, SharedRateCounter

        counter = await stack.enter_async_context(SharedRateCounter(redis))
        others = await stack.enter_async_context(AnnouncedStreams(redis))
    limits = OwnerLimits(
        sessions=settings.limit_sessions,
        runs=settings.limit_runs,
        streams=settings.limit_streams,
        tokens_per_day=settings.limit_tokens_per_day,
    )
    rates = RateLimits(
        requests_per_second=settings.limit_requests_per_second,
        login_failures_per_minute=settings.limit_login_failures_per_minute,
        upload_bytes_per_day=settings.limit_upload_bytes_per_day,
    )
    service = LimitService(limits=limits, sessions=store.sessions, event_log=event_log, others=others)
    return service, RateService(rates, counter)
