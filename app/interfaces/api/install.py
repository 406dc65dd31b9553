"""Everything that this service answers over HTTP, put into an application."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from app.interfaces.api import chat, health, sandbox, screenshots, sessions, tickets, vnc
from app.interfaces.api.document import install_document
from app.interfaces.errors import install_error_handlers
from app.interfaces.guard import Guard
from app.interfaces.metrics import Metrics
from app.interfaces.request_log import RequestLog

ROUTERS = (
    sessions.router,
    chat.router,
    sandbox.router,
    screenshots.router,
    tickets.router,
    vnc.router,
    health.router,
)

WORKER_ROUTERS = (health.router,)
"""What a process that only carries runs answers."""


def install(
    app: FastAPI, metrics: Metrics, *, allowed_origins: Sequence[str] = (), routers: Sequence[APIRouter] = ROUTERS
) -> None:
    """Routes, error handlers, middleware and the OpenAPI document. `provide` gives the routes what they call.

    `allowed_origins`: the origins whose pages may call the service; none means its own only.
    """
    app.router.redirect_slashes = False  # a redirect would be an answer without the envelope
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    install_error_handlers(app, routes)
    install_document(app)
    # From the inside out: the last one added sees a request first.
    app.add_middleware(Guard)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "PUT", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(RequestLog, metrics=metrics)
