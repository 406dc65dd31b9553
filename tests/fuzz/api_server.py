"""The service on a loopback port, in a thread: real server, routes and SQLite; sandboxes and browsers in memory."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.interfaces.http_connection import HttpConnection
from app.main import create_app
from app.settings import Settings
from tests.fakes.memory_browser import MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider

STREAM_SECONDS = 0.05
"""Time after which the client of a stream leaves it by default, in seconds: a stream of a session has no end."""


class StreamCutter:
    """ASGI middleware that counts requests, and ends each event stream soon, as a client that leaves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests = 0
        self.stream_seconds = STREAM_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.requests += 1
        left, is_stream, is_complete = asyncio.Event(), False, False

        async def receive_until_left() -> Message:
            # The request itself arrives before a stream begins.
            if not is_stream:
                return await receive()
            await left.wait()
            return {"type": "http.disconnect"}

        async def watching_send(message: Message) -> None:
            nonlocal is_stream, is_complete
            if message["type"] == "http.response.start":
                is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                if is_stream:
                    asyncio.get_running_loop().call_later(self.stream_seconds, left.set)
            else:
                is_complete = not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive_until_left, watching_send)
        if is_stream and not is_complete:
            await send({"type": "http.response.body", "body": b""})


class ApiServer:
    """The running service."""

    def __init__(self, app: FastAPI, cutter: StreamCutter, port: int) -> None:
        self.app = app
        self.url = f"http://127.0.0.1:{port}"
        self.cutter = cutter


@contextmanager
def serve_api(data_dir: Path, **settings: Any) -> Iterator[ApiServer]:
    """Run the service with the demo model. Without limits: a test makes more requests than any client."""
    limits = dict.fromkeys((name for name in Settings.model_fields if name.startswith("limit_")), 0)
    chosen = Settings(_env_file=None, data_dir=data_dir, log_level="ERROR", **limits | settings)  # type: ignore[arg-type]
    app = create_app(chosen, sandboxes=MemorySandboxProvider(), browsers=MemoryBrowsers(), heartbeat=5)
    cutter = StreamCutter(app)
    config = uvicorn.Config(
        cutter,
        host="127.0.0.1",
        port=0,
        log_config=None,
        lifespan="on",
        http=HttpConnection,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        thread.join(0.02)
    try:
        yield ApiServer(app, cutter, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
