"""Create the application: its routes, its error handlers, and the lifespan that opens and closes the service."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Unpack

from fastapi import FastAPI

from app.bootstrap import Overrides, open_service
from app.infrastructure.logging import configure_logging
from app.interfaces.api.app_setup import ROUTERS, WORKER_ROUTERS, set_up_app
from app.interfaces.api.services import provide
from app.interfaces.metrics import Metrics
from app.interfaces.middleware import OriginMiddleware
from app.providers import check_providers
from app.settings import Role, Settings, load_settings


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
    configure_logging(chosen.log_level)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with open_service(chosen, overrides, metrics, role=role) as service:
            app.state.service = service
            provide(app, service.services)
            yield

    app = FastAPI(title="Anker", version="0.1.0", lifespan=lifespan)
    routers = WORKER_ROUTERS if role == "worker" else ROUTERS
    set_up_app(app, metrics, allowed_origins=chosen.allowed_origins, routers=routers)
    app.add_middleware(OriginMiddleware, allowed=chosen.allowed_origins, loopback_only=chosen.is_loopback)
    return app
