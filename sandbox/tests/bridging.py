"""A bridge behind a real uvicorn, and something that listens inside."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import uvicorn
import websockets

from sandbox.activity import Activity
from sandbox.auth import Token
from sandbox.bridges.upgrade import Door, Upgrade

TOKEN = {"Authorization": "Bearer t"}


class Served:
    """Where the bridge is, and what it counts as use."""

    def __init__(self, server: uvicorn.Server, activity: Activity) -> None:
        self.server = server
        self.activity = activity
        self.port = server.servers[0].sockets[0].getsockname()[1]

    def connect(self, path: str = "/", **options):
        """A viewer that takes any message."""
        defaults = {"additional_headers": TOKEN, "proxy": None, "compression": None, "max_size": None}
        return websockets.connect(f"ws://127.0.0.1:{self.port}{path}", **(defaults | options))


@contextlib.asynccontextmanager
async def serving(door: Door) -> AsyncIterator[Served]:
    """`door` behind the token `t`, at any path."""
    activity = Activity(asyncio.get_running_loop().time)

    async def app(scope, receive, send):
        raise AssertionError("only WebSockets come here")

    def upgrade(*, server_state, **_) -> Upgrade:
        return Upgrade(door, Token("t"), activity, server_state.connections)

    config = uvicorn.Config(
        app, port=0, ws=upgrade, lifespan="off", log_level="error", http="httptools", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield Served(server, activity)
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def listening(path: str, handle: Callable) -> AsyncIterator[asyncio.Server]:
    """A unix socket; `handle(reader, writer)` for everyone who connects."""
    server = await asyncio.start_unix_server(handle, path)
    try:
        yield server
    finally:
        server.close()
