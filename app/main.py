"""Create the application: its routes, error handlers and middleware, and the lifespan of the service."""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Unpack

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from app.bootstrap import Overrides, open_service
from app.domain.external.authenticator import Authenticator
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.external.telemetry import NO_TRACER, Tracer
from app.infrastructure.logging import configure_logging
from app.infrastructure.secrets.known_secrets import KnownSecrets
from app.interfaces.api import admin, chat, config, export, health, models, sandbox, sessions, tickets, vnc
from app.interfaces.api.openapi import documentation_router, install_openapi
from app.interfaces.api.services import Services, provide, services_in
from app.interfaces.authentication import RECHECK_SECONDS, AuthenticationMiddleware, OnRefused
from app.interfaces.errors import install_error_handlers
from app.interfaces.limits import LoginLimitMiddleware, RequestLimitMiddleware, ResponseLimitMiddleware
from app.interfaces.metrics import Metrics
from app.interfaces.middleware import BodyLimitMiddleware, FailureMiddleware, OriginMiddleware, RequestLogMiddleware
from app.observability import VERSION
from app.own_secrets import secrets_of
from app.providers import AUTHENTICATORS, check_providers
from app.settings import Role, Settings, load_settings

ROUTERS = (
    sessions.router,
    chat.router,
    admin.router,
    export.router,
    models.router,
    config.router,
    sandbox.router,
    tickets.router,
    vnc.router,
    health.router,
    documentation_router,
)
"""Every router. `vnc` also refuses WebSockets to unknown paths, so a router with a WebSocket must precede it."""

WORKER_ROUTERS = (health.router,)
"""Routers of a process that only carries runs."""


class Application(FastAPI):
    """A FastAPI application that logs every request and reports every failure, also those of its middleware.

    These two parts wrap the whole application, so a middleware that is added later cannot come before them.
    """

    def __init__(self, metrics: Metrics, **options: Any) -> None:
        """Create the application.

        Args:
            metrics: Where requests are counted.
            options: Passed to FastAPI.
        """
        super().__init__(**options)
        self._outermost = RequestLogMiddleware(
            FailureMiddleware(super().__call__), metrics=metrics, tracer=self._tracer
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as the ASGI specification says."""
        await self._outermost(scope, receive, send)

    def _tracer(self) -> Tracer:
        services: Services | None = getattr(self.state, "services", None)  # set when the service is open
        return NO_TRACER if services is None else services.tracer


def create_app(settings: Settings | None = None, *, role: Role = "all", **overrides: Unpack[Overrides]) -> FastAPI:
    """Create the service as an ASGI application.

    Args:
        settings: The settings; read from the environment when None.
        role: What this process does. A worker serves only `/health`, `/ready` and `/metrics`.
        overrides: Parts that replace those which the settings choose.

    Raises:
        UnusableSetting: A setting cannot be used.
    """
    chosen = settings or load_settings()
    check_providers(chosen)
    secrets = KnownSecrets()
    configure_logging(chosen.log_level, secrets)
    secrets.add(secrets_of(chosen))
    metrics = Metrics()
    authenticator = AUTHENTICATORS[chosen.auth_mode].create(chosen)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with open_service(chosen, overrides, metrics, secrets=secrets, role=role, login=authenticator) as service:
            app.state.service = service
            provide(app, service.services)
            yield

    app = Application(metrics, title="Anker", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    routers = WORKER_ROUTERS if role == "worker" else ROUTERS
    set_up_app(
        app,
        authenticator,
        admins=chosen.auth_admins,
        on_refused=lambda _reason, client: services_in(app).audit.count_refused_login(client),
        allowed_origins=chosen.allowed_origins,
        routers=routers,
        mask=secrets,
    )
    app.add_middleware(OriginMiddleware, allowed=chosen.allowed_origins, loopback_only=chosen.is_loopback)
    return app


def set_up_app(
    app: Application,
    authenticator: Authenticator,
    *,
    admins: Collection[str] = (),
    on_refused: OnRefused = lambda reason, client: None,
    recheck_seconds: float = RECHECK_SECONDS,
    allowed_origins: Sequence[str] = (),
    routers: Sequence[APIRouter] = ROUTERS,
    mask: SecretMask | None = None,
) -> None:
    """Add everything that answers HTTP requests to `app`; `provide` adds the services that the routes call.

    Args:
        app: The application.
        authenticator: Knows who may log in.
        admins: Names of those who may list and stop everything.
        on_refused: Is told of refused logins; see `AuthenticationMiddleware`.
        recheck_seconds: Seconds between two checks of the login of an open stream.
        allowed_origins: Other origins whose pages may call the service.
        routers: The routers to include.
        mask: Masks the service's own secrets in error messages; None to mask nothing.
    """
    app.router.redirect_slashes = False  # a redirect would be a response without the envelope
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_error_handlers(app, routes, mask or NoSecrets())
    install_openapi(app, routes)
    # Middleware that is added last handles a request first.
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(ResponseLimitMiddleware)
    app.add_middleware(RequestLimitMiddleware)
    # Inside of CORS: a preflight has no login, and pages of allowed origins can read a refusal.
    app.add_middleware(
        AuthenticationMiddleware,
        authenticator=authenticator,
        admins=admins,
        on_refused=on_refused,
        recheck_seconds=recheck_seconds,
    )
    app.add_middleware(LoginLimitMiddleware)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=sorted({"HEAD", *(method for route in routes for method in route.methods or ())}),
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
