"""As little of an HTTP server as a stand-in needs, so that nearly nothing of a measured time is its own."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import uvloop

KEPT = 64 * 1024
"""Bytes of a body that are kept; of a longer one the rest is only counted."""

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose last byte has come. `at`: when that was, on the machine's monotonic clock, in seconds."""

    path: str
    head: bytes
    body: bytes
    size: int
    at: float


class Exchange(asyncio.Protocol):
    """One connection. `answer` is called for each request; it, or someone later, calls `send`."""

    def __init__(self, answer: "Callable[[Exchange, Asked], None]") -> None:
        self._answer = answer
        self._head = bytearray()
        self._body = bytearray()
        self._size = self._seen = 0
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class is none

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. Nobody here sends a second request before the first is answered."""
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
        if len(self._body) < KEPT:
            self._body += data[: KEPT - len(self._body)]
        if self._seen >= self._size:
            path = self._head.split(b" ", 2)[1].decode()
            asked = Asked(path, bytes(self._head), bytes(self._body), self._size, time.monotonic())
            self._head, self._body, self._seen, self._in_body = bytearray(), bytearray(), 0, False
            self._answer(self, asked)

    def send(self, body: bytes, *, kind: str = "application/json", status: str = "200 OK") -> None:
        """Answer the request in one write."""
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def serve(answer: Callable[[Exchange, Asked], None]) -> None:
    """Listen on a free loopback port, print the base URL, and answer until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Exchange(answer), sock=listener)
        await server.serve_forever()

    uvloop.run(forever())
