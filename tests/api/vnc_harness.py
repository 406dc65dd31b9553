"""An API harness whose sessions have scripted desktops, behind a real server that real viewers connect to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from app.interfaces.http_connection import HttpConnection
from app.interfaces.viewer_connection import MAX_MESSAGE, ViewerConnection
from tests.fakes.memory_sandbox import MemorySandbox
from tests.support.api_harness import API, ApiHarness

MIB = 1 << 20

CLOSE_SECONDS = 30
"""Limit in seconds for the server to close a connection: much more than it takes, for a loaded machine."""


class ScriptedDesktop:
    """A `Desktop` that sends what the test queues, and keeps what it receives."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.unlimited = False
        """Whether it sends numbered blocks without end, instead of what is queued."""
        self.bytes_sent = 0
        self.received = bytearray()
        self.accepts_input = asyncio.Event()
        self.accepts_input.set()
        self.closed = asyncio.Event()

    async def receive(self) -> bytes:
        if self.unlimited:
            await asyncio.sleep(0)
            data = self.bytes_sent.to_bytes(8, "big") * (64 * 128)
        else:
            item = await self.outgoing.get()
            if isinstance(item, Exception):
                raise item
            data = item
        self.bytes_sent += len(data)
        return data

    async def send(self, data: bytes) -> None:
        await self.accepts_input.wait()
        self.received += data

    async def close(self) -> None:
        self.closed.set()


class DesktopSandbox(MemorySandbox):
    """A sandbox with a desktop: each viewer gets a connection of its own."""

    def __init__(self, *, unlimited: bool = False) -> None:
        super().__init__()
        self.unlimited = unlimited
        self.desktops: list[ScriptedDesktop] = []
        self.refusal: Exception | None = None
        self.opened = asyncio.Event()

    async def desktop(self) -> ScriptedDesktop:
        if self.refusal is not None:
            raise self.refusal
        desktop = ScriptedDesktop()
        desktop.unlimited = self.unlimited
        self.desktops.append(desktop)
        self.opened.set()
        return desktop


class VncHarness:
    """An API harness behind a real server that is configured as the service's own."""

    def __init__(
        self,
        *,
        ping_seconds: float = 20,
        pong_seconds: float = 60,
        drain_seconds: int = 3,
        api: ApiHarness | None = None,
    ) -> None:
        self.api = api or ApiHarness()
        self.drain_seconds = drain_seconds
        self.ping_seconds, self.pong_seconds = ping_seconds, pong_seconds
        self.server: uvicorn.Server | None = None
        self.port = 0

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Self]:
        """Run the server."""
        config = uvicorn.Config(
            self.api.app,
            port=0,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=self.drain_seconds,
            http=HttpConnection,
            ws=ViewerConnection,
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,
            ws_ping_interval=self.ping_seconds,
            ws_ping_timeout=self.pong_seconds,
        )
        config.load()
        self.server = uvicorn.Server(config)
        self.server.lifespan = config.lifespan_class(config)
        await self.server.startup()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await self.api.close()
            await self.server.shutdown()

    async def create_session(self, *, unlimited: bool = False) -> tuple[str, DesktopSandbox]:
        """Create a session; return its id and the sandbox that it will get."""
        session_id = await self.api.create_session()
        sandbox = DesktopSandbox(unlimited=unlimited)
        self.api.sandboxes.prepared[session_id] = sandbox
        return session_id, sandbox

    def path(self, session_id: str) -> str:
        return f"{API}/{session_id}/vnc"

    async def connect_viewer(
        self, session_id: str, *, ticket: str | None = None, signature: str | None = None, **options: Any
    ) -> ClientConnection:
        options = {"subprotocols": [Subprotocol("binary")], **options}
        query = "" if ticket is None else f"?ticket={ticket}"
        query = query if signature is None else f"?signature={signature}"
        url = f"ws://127.0.0.1:{self.port}{self.path(session_id)}{query}"
        return await connect(url, proxy=None, compression=None, max_size=4 * MIB, **options)

    @property
    def connections(self) -> list[ViewerConnection]:
        """The viewer connections that the server holds open."""
        assert self.server is not None
        return [c for c in self.server.server_state.connections if isinstance(c, ViewerConnection)]

    @property
    def viewers(self) -> int:
        return self.api.services.desktop.viewers


async def close_reason(viewer: ClientConnection) -> tuple[int, str]:
    """Wait until the server closes a viewer's connection; return the code and the reason. Data is ignored."""
    async with asyncio.timeout(CLOSE_SECONDS):
        try:
            while True:
                await viewer.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, closed
            return closed.rcvd.code, closed.rcvd.reason
