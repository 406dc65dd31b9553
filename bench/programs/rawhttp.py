"""A minimal HTTP server for stand-ins, so that it adds almost nothing to a measured time."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import uvloop

MAX_KEPT_BYTES = 64 * 1024
"""Maximum number of bytes of a body that are kept; the rest is only counted."""

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request. `at` is the monotonic time in seconds at which its last byte arrived."""

    path: str
    head: bytes
    body: bytes
    size: int
    at: float


class Exchange(asyncio.Protocol):
    """One connection. `respond` is called for each request; it calls `send`, at once or later."""

    def __init__(self, respond: "Callable[[Exchange, Request], None]") -> None:
        self._respond = respond
        self._head = bytearray()
        self._body = bytearray()
        self._size = self._seen = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class is no subclass

    def data_received(self, data: bytes) -> None:
        """Collect a request. A client never sends a second one before the response to the first."""
        if not self._in_body:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = bytes(self._head[end + 4 :])
            del self._head[end + 4 :]
            length = _LENGTH.search(self._head)
            self._size = int(length[1]) if length else 0
            self._in_body = True
        self._seen += len(data)
        if len(self._body) < MAX_KEPT_BYTES:
            self._body += data[: MAX_KEPT_BYTES - len(self._body)]
        if self._seen >= self._size:
            path = self._head.split(b" ", 2)[1].decode()
            request = Request(path, bytes(self._head), bytes(self._body), self._size, time.monotonic())
            self._head, self._body, self._seen, self._in_body = bytearray(), bytearray(), 0, False
            self._respond(self, request)

    def send(self, body: bytes, *, kind: str = "application/json", status: str = "200 OK") -> None:
        """Send the response in one write."""
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def serve(respond: Callable[[Exchange, Request], None]) -> None:
    """Listen on a free loopback port, print the base URL, and serve until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Exchange(respond), sock=listener)
        await server.serve_forever()

    uvloop.run(forever())
