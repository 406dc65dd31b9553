"""The services that routes call."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from fastapi import FastAPI
from starlette.requests import HTTPConnection

from app.application.process_monitor import Check
from app.application.services.audit import AuditTrail
from app.application.services.chat import ChatService
from app.application.services.desktop import DesktopService
from app.application.services.desktop_links import DesktopLinks
from app.application.services.export import ExportService
from app.application.services.inspect_sandbox import SandboxInspector
from app.application.services.limits import LimitService
from app.application.services.rates import RateService
from app.application.services.screenshots import ScreenshotService
from app.application.services.sessions import AdminService, SessionService
from app.application.services.tickets import TicketService
from app.domain.external.llm import ModelCatalog
from app.domain.external.secrets import SecretMask
from app.domain.external.telemetry import NO_TRACER, Tracer
from app.interfaces.metrics import Gauges, Metrics
from app.interfaces.wire import WIRE_VIEWS, WireView


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The use cases of one process, and what its streams and metrics need."""

    chat: ChatService
    sessions: SessionService
    inspect_sandbox: SandboxInspector
    screenshots: ScreenshotService
    desktop: DesktopService
    tickets: TicketService
    links: DesktopLinks
    audit: AuditTrail
    export: ExportService
    models: ModelCatalog
    limits: LimitService
    rates: RateService
    checks: Mapping[str, Check]
    """Checks that `/ready` runs, by the name of the dependency."""
    end_streams: Callable[[], None]
    """Makes every open stream end soon. Called when the server starts to shut down, possibly more than once."""
    metrics: Metrics
    mask: SecretMask
    """Masks the service's own secrets in what clients are told of failures."""
    gauges: Gauges
    tracer: Tracer = NO_TRACER
    """Records requests as spans."""
    view: WireView = WIRE_VIEWS[""]
    """What clients are shown of events and sessions."""
    auth_provider: str = "none"
    """How clients log in: a value of `AUTH`."""
    heartbeat: float = 15.0
    """Seconds between two comments on a stream."""

    @property
    def admin(self) -> AdminService:
        """The use cases of administrators, on the sessions of others."""
        return AdminService(service=self.sessions)


def provide(app: FastAPI, services: Services) -> None:
    """Give `app` its services, before its first request."""
    app.state.services = services


def services_of(connection: HTTPConnection) -> Services:
    """Return the services of the application that serves `connection`."""
    return services_in(connection.app)


def services_in(app: FastAPI) -> Services:
    """Return the services of an application that is open."""
    return cast("Services", app.state.services)
