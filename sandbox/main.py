"""The sandbox service as an ASGI application, and the door for what is not ASGI.

`create_app(settings)` wires the parts; `app.state.sandbox` is what must be begun and closed (its lifespan closes it).
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from sandbox.activity import Activity, CountActivity
from sandbox.auth import MIB, BearerAuth, BodyLimit, Token
from sandbox.bridges.upgrade import Bridge, Handshake
from sandbox.envelope import HANDLERS
from sandbox.failure import Failure
from sandbox.files.paths import Paths
from sandbox.files.root import Root
from sandbox.parts import Parts
from sandbox.routes_cdp import cdp_routes
from sandbox.routes_file import UPLOAD_BYTES, file_routes
from sandbox.routes_shell import shell_routes
from sandbox.routes_status import STATUS, status_routes
from sandbox.settings import Settings
from sandbox.shell.manager import Shells

API = "/api/v1"
JSON_BYTES = 32 * MIB


class Sandbox:
    """What runs in a sandbox: its shells, the desktop and the browser."""

    def __init__(self, settings: Settings) -> None:
        self.shells = Shells(settings)
        self.parts = Parts(settings, self.shells.word)
        self.root = Root(settings)
        self.activity = Activity(time.monotonic)
        self.token = Token(settings.token)

    @property
    def pids(self) -> set[int]:
        """The processes that somebody waits for."""
        return self.shells.pids | self.parts.pids | self.root.pids

    async def close(self) -> None:
        """Ends all of it. Idempotent."""
        await asyncio.gather(self.shells.close(), self.parts.end())

    def begin(self) -> None:
        """Starts what is to be there from the beginning; returns at once."""
        self.parts.begin()

    async def open(self, handshake: Handshake, viewer: asyncio.Transport) -> Bridge:
        """The door for WebSockets. Failure 404 when none leads there, 409 and 503 when it leads to nothing now."""
        # Loaded for the first who comes: most sandboxes are never watched.
        if handshake.path == "/vnc":
            from sandbox.bridges.vnc import VncBridge

            bridge = VncBridge(viewer, handshake)
            await self.parts.desktop.reach(bridge.open)
            return bridge
        if handshake.path.startswith("/cdp/devtools/"):
            from sandbox.bridges.tunnel import Tunnel

            tunnel = Tunnel(viewer, handshake, handshake.target.removeprefix("/cdp"))
            await self.parts.browser.reach(tunnel.open)
            return tunnel
        raise Failure(404, f"no such route: WebSocket {handshake.path}")


def create_app(settings: Settings) -> Starlette:
    """The application; needs no running event loop."""
    sandbox = Sandbox(settings)
    paths = Paths(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await sandbox.close()

    routes = [
        *shell_routes(sandbox.shells, paths, settings),
        *file_routes(paths, sandbox.root),
        *status_routes(sandbox.shells, sandbox.parts, sandbox.activity),
    ]
    limits = {f"{API}/file/upload": UPLOAD_BYTES + MIB}
    app = Starlette(
        routes=[Mount(API, routes=routes), *cdp_routes(sandbox.parts.browser)],
        middleware=[
            Middleware(BearerAuth, token=sandbox.token),
            Middleware(CountActivity, activity=sandbox.activity, spared=(f"{API}{STATUS}",)),
            Middleware(BodyLimit, default=JSON_BYTES, by_path=limits),
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.state.sandbox = sandbox
    return app
