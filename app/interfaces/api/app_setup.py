"""Set up an application with the routes, error handlers, middleware and OpenAPI document of this service."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from app.interfaces.api import chat, health, sandbox, sessions, tickets, vnc
from app.interfaces.api.openapi import install_openapi
from app.interfaces.errors import install_error_handlers
from app.interfaces.metrics import Metrics
from app.interfaces.middleware import BodyLimitMiddleware, RequestLogMiddleware

ROUTERS = (
    sessions.router,
    chat.router,
    sandbox.router,
    tickets.router,
    vnc.router,
    health.router,
)
"""Every router. `vnc` also refuses WebSockets to unknown paths, so a router with a WebSocket must precede it."""

WORKER_ROUTERS = (health.router,)
"""Routers of a process that only carries runs."""


def set_up_app(
    app: FastAPI, metrics: Metrics, *, allowed_origins: Sequence[str] = (), routers: Sequence[APIRouter] = ROUTERS
) -> None:
    """Add everything that answers HTTP requests to `app`; `provide` adds the services that the routes call.

    Args:
        app: The application.
        metrics: Where requests are counted.
        allowed_origins: Other origins whose pages may call the service.
        routers: The routers to include.
    """
    app.router.redirect_slashes = False  # a redirect would be a response without the envelope
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_error_handlers(app, routes)
    install_openapi(app, routes)
    # Middleware that is added last handles a request first.
    app.add_middleware(BodyLimitMiddleware)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "PUT", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(RequestLogMiddleware, metrics=metrics)
