"""Run uvicorn as `python -m app` does."""

import socket
from typing import Any

import uvicorn

from app.interfaces.http_connection import HttpConnection, TrimmingServer


def serve(app: Any) -> None:
    """Listen on a free loopback port, print the base URL, and serve until SIGTERM."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=3, http=HttpConnection, ws="none"
    )
    TrimmingServer(config).run([listener])
