"""The sandbox service as an ASGI application, and the handler of WebSockets, which bypass ASGI.

`create_app(settings)` wires the parts. The server starts `app.state.sandbox`; the application's lifespan closes it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from sandbox.activity import Activity, ActivityMiddleware
from sandbox.auth import MIB, BearerAuthMiddleware, BodyLimitMiddleware, Token
from sandbox.bridges.websocket import Bridge, Handshake
from sandbox.files.paths import PathResolver
from sandbox.files.process import CallRunner
from sandbox.parts import Parts
from sandbox.routes import STATUS, UPLOAD_BYTES, cdp_routes, file_routes, shell_routes, status_routes
from sandbox.settings import Settings
from sandbox.shell.manager import Shells
from sandbox.web import HANDLERS, Failure

API = "/api/v1"
"""Path prefix of the API."""
JSON_BYTES = 32 * MIB
"""Maximum size of a JSON body, in bytes."""


class Sandbox:
    """The parts of a sandbox: shells, desktop and browser."""

    def __init__(self, settings: Settings) -> None:
        self.shells = Shells(settings)
        self.parts = Parts(settings, self.shells.mark)
        self.calls = CallRunner(settings)
        self.activity = Activity(time.monotonic)
        self.token = Token(settings.token)

    @property
    def pids(self) -> set[int]:
        """Processes that this program waits for."""
        return self.shells.pids | self.parts.pids | self.calls.pids

    async def close(self) -> None:
        """End all parts. Idempotent."""
        await asyncio.gather(self.shells.close(), self.parts.stop())

    def start(self) -> None:
        """Start the parts that run from the beginning. Return at once."""
        self.parts.start()

    async def open_bridge(self, handshake: Handshake, viewer: asyncio.Transport) -> Bridge:
        """Open the bridge for a WebSocket.

        Raises:
            Failure: 404 for an unknown path; 409 or 503 if its target cannot be used now.
        """
        # Imported on first use, because most sandboxes are never watched.
        if handshake.path == "/vnc":
            from sandbox.bridges.vnc import VncBridge

            bridge = VncBridge(viewer, handshake, self.parts.desktop.keyboard.prepare)
            await self.parts.desktop.connect(bridge.open)
            return bridge
        if handshake.path.startswith("/cdp/devtools/"):
            from sandbox.bridges.cdp import CdpBridge

            driver = CdpBridge(viewer, handshake)
            await self.parts.browser.connect(driver.open)
            return driver
        raise Failure(404, f"no such route: WebSocket {handshake.path}")


def create_app(settings: Settings) -> Starlette:
    """Create the application. It needs no running event loop."""
    sandbox = Sandbox(settings)
    paths = PathResolver(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await sandbox.close()

    routes = [
        *shell_routes(sandbox.shells, paths, settings),
        *file_routes(paths, sandbox.calls),
        *status_routes(sandbox.shells, sandbox.parts, sandbox.activity),
    ]
    limits = {f"{API}/file/upload": UPLOAD_BYTES + MIB}
    app = Starlette(
        routes=[Mount(API, routes=routes), *cdp_routes(sandbox.parts.browser)],
        middleware=[
            Middleware(BearerAuthMiddleware, token=sandbox.token),
            Middleware(ActivityMiddleware, activity=sandbox.activity, exempt_paths=(f"{API}{STATUS}",)),
            Middleware(BodyLimitMiddleware, default=JSON_BYTES, by_path=limits),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.sandbox = sandbox
    return app
