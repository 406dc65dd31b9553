"""What the routes call."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from app.application.services.chat import ChatService
from app.application.services.delete_session import DeleteSession
from app.application.services.desktop import DesktopService
from app.application.services.inspect_sandbox import SandboxInspector
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import SessionService
from app.application.services.stop_run import StopRun
from app.application.services.tickets import TicketService
from app.interfaces.metrics import Gauges, Metrics

Check = Callable[[], Awaitable[str | None]]
"""Looks at one dependency: why it cannot be used now, None when it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The use cases of one process, and what its streams need to know."""

    chat: ChatService
    sessions: SessionService
    stop_run: StopRun
    delete_session: DeleteSession
    inspect_sandbox: SandboxInspector
    screenshots: ScreenshotService
    desktop: DesktopService
    tickets: TicketService
    checks: Mapping[str, Check]
    """What `/ready` asks, by the name of the dependency that is configured."""
    end_streams: Callable[[], None]
    """Makes every open stream end soon; called, perhaps more than once, when the server begins to shut down."""
    metrics: Metrics
    gauges: Gauges
    heartbeat: float = 15.0
    """Seconds between two comments on a stream."""


def provide(app: FastAPI, services: Services) -> None:
    """Give `app` its services; before the first request."""
    app.state.services = services


def services_of(connection: HTTPConnection) -> Services:
    """The services of the application that answers a request, or serves a WebSocket."""
    return cast("Services", connection.app.state.services)
