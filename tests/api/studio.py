"""A house whose sessions have scripted desktops, behind a real server that real viewers connect to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from app.interfaces.viewer_connection import MAX_MESSAGE, ViewerConnection
from tests.api.house import API, House
from tests.fakes.memory_sandbox import MemorySandbox

MIB = 1 << 20
SECONDS = 30
"""For what must happen soon: much more than it takes, for a loaded machine."""


class ScriptedDesktop:
    """A `Desktop` that shows what it is told to, and remembers what it hears."""

    def __init__(self) -> None:
        self.shows: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.endless = False
        self.shown = 0
        self.heard = bytearray()
        self.listens = asyncio.Event()
        self.listens.set()
        self.closed = asyncio.Event()

    async def receive(self) -> bytes:
        if self.endless:
            await asyncio.sleep(0)
            data = self.shown.to_bytes(8, "big") * (64 * 128)
        else:
            item = await self.shows.get()
            if isinstance(item, Exception):
                raise item
            data = item
        self.shown += len(data)
        return data

    async def send(self, data: bytes) -> None:
        await self.listens.wait()
        self.heard += data

    async def close(self) -> None:
        self.closed.set()


class Screen(MemorySandbox):
    """A sandbox with a desktop: a connection of its own for each who asks."""

    def __init__(self, *, endless: bool = False) -> None:
        super().__init__()
        self.endless = endless
        self.desktops: list[ScriptedDesktop] = []
        self.refusal: Exception | None = None
        self.opened = asyncio.Event()

    async def desktop(self) -> ScriptedDesktop:
        if self.refusal is not None:
            raise self.refusal
        desktop = ScriptedDesktop()
        desktop.endless = self.endless
        self.desktops.append(desktop)
        self.opened.set()
        return desktop


class Studio:
    """A house behind a real server, configured as the service's own."""

    def __init__(self, *, ping_seconds: float = 20, pong_seconds: float = 60, drain_seconds: int = 3) -> None:
        self.house = House()
        self.drain_seconds = drain_seconds
        self.ping_seconds, self.pong_seconds = ping_seconds, pong_seconds
        self.server: uvicorn.Server | None = None
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Studio"]:
        config = uvicorn.Config(
            self.house.app,
            port=0,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=self.drain_seconds,
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
            await self.house.close()
            await self.server.shutdown()

    async def screen(self, *, endless: bool = False) -> tuple[str, Screen]:
        """A new session and what its sandbox will be."""
        session_id = await self.house.new()
        screen = Screen(endless=endless)
        self.house.sandboxes.prepared[session_id] = screen
        return session_id, screen

    def path(self, session_id: str) -> str:
        return f"{API}/{session_id}/vnc"

    async def view(self, session_id: str, *, ticket: str | None = None, **options: Any) -> ClientConnection:
        options = {"subprotocols": [Subprotocol("binary")], **options}
        query = "" if ticket is None else f"?ticket={ticket}"
        url = f"ws://127.0.0.1:{self.port}{self.path(session_id)}{query}"
        return await connect(url, proxy=None, compression=None, max_size=4 * MIB, **options)

    @property
    def connections(self) -> list[ViewerConnection]:
        """What the server holds open for viewers."""
        assert self.server is not None
        return [c for c in self.server.server_state.connections if isinstance(c, ViewerConnection)]

    @property
    def viewers(self) -> int:
        return self.house.services.desktop.viewers


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():
            await asyncio.sleep(0.01)


async def farewell(viewer: ClientConnection) -> tuple[int, str]:
    """The code and the reason with which a viewer's connection ends, whatever it is shown before."""
    async with asyncio.timeout(SECONDS):
        try:
            while True:
                await viewer.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None, closed
            return closed.rcvd.code, closed.rcvd.reason
