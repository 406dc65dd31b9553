"""A server for hostile clients: the real routes and the real server, over in-memory stores."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from app.interfaces.http_connection import HttpConnection
from app.interfaces.middleware import OriginMiddleware
from tests.api.vnc_harness import VncHarness
from tests.support.api_harness import ApiHarness

LONG = bool(os.environ.get("HOSTILE_LONG"))
"""Whether to run the long mode: many more clients, and the limits of a real service."""

READ_SECONDS = 30
"""Limit in seconds for the server to respond: much more than it takes, for a loaded machine."""


@dataclass
class HostileClient:
    """Raw connections to the server."""

    server: VncHarness

    @property
    def harness(self) -> ApiHarness:
        return self.server.api

    @property
    def port(self) -> int:
        return self.server.port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, *parts: bytes) -> bytes:
        """Send `parts` on a new connection, and return everything that the server sends until it closes it."""
        reader, writer = await self.connect()
        try:
            async with asyncio.timeout(READ_SECONDS):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                return await reader.read()
        finally:
            writer.close()

    @property
    def connections(self) -> list[HttpConnection]:
        """The HTTP connections that the server holds open."""
        assert self.server.server is not None
        return [each for each in self.server.server.server_state.connections if isinstance(each, HttpConnection)]


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def failure_of(response: bytes) -> tuple[int, str]:
    """Return the status and the message of a failed response, which must be one envelope and nothing else."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"application/json" in head.lower(), response[:500]
    envelope = json.loads(body)
    assert list(envelope) == ["code", "msg", "data"]
    assert envelope["code"] == status_of(response)
    assert envelope["data"] is None
    return envelope["code"], envelope["msg"]


@pytest.fixture
async def hostile() -> AsyncIterator[HostileClient]:
    server = VncHarness()
    server.api.app.add_middleware(OriginMiddleware, allowed=(), loopback_only=True)
    server.api.client.base_url = "http://127.0.0.1"
    async with server.run():
        yield HostileClient(server)
