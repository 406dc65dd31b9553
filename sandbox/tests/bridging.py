"""Harness for bridges: a real uvicorn with a bridge, and a local server behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import uvicorn
import websockets

from sandbox.activity import Activity
from sandbox.auth import Token
from sandbox.bridges.websocket import BridgeOpener, WebSocketProtocol

TOKEN = {"Authorization": "Bearer t"}


class BridgeServer:
    """The address of the bridge and its activity."""

    def __init__(self, server: uvicorn.Server, activity: Activity) -> None:
        self.server = server
        self.activity = activity
        self.port = server.servers[0].sockets[0].getsockname()[1]

    def connect(self, path: str = "/", **options):
        """Connect a viewer that accepts any message."""
        defaults = {"additional_headers": TOKEN, "proxy": None, "compression": None, "max_size": None}
        return websockets.connect(f"ws://127.0.0.1:{self.port}{path}", **(defaults | options))


@contextlib.asynccontextmanager
async def serve_bridge(open_bridge: BridgeOpener) -> AsyncIterator[BridgeServer]:
    """Serve bridges opened by `open_bridge`, at any path, with the token `t`."""
    activity = Activity(asyncio.get_running_loop().time)

    async def app(scope, receive, send):
        raise AssertionError("only WebSockets come here")

    def upgrade(*, server_state, **_) -> WebSocketProtocol:
        return WebSocketProtocol(open_bridge, Token("t"), activity, server_state.connections)

    config = uvicorn.Config(
        app, port=0, ws=upgrade, lifespan="off", log_level="error", http="httptools", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield BridgeServer(server, activity)
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def listen(path: str, handle: Callable) -> AsyncIterator[asyncio.Server]:
    """Listen on a unix socket and run `handle(reader, writer)` for each connection."""
    server = await asyncio.start_unix_server(handle, path)
    try:
        yield server
    finally:
        server.close()
