"""Connections that stop being HTTP: the handshake is read and judged here, then a bridge has them.

uvicorn hands over a connection that asks for a WebSocket to a protocol of ours, not to an ASGI application: a bridge
moves bytes between two sockets, and a message object and a queue for each of them would cost more than the moving.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, cast

from starlette.responses import Response

from sandbox.activity import Activity
from sandbox.auth import Token, not_allowed
from sandbox.envelope import refusal
from sandbox.failure import Failure

log = logging.getLogger("sandbox")


@dataclass(frozen=True)
class Handshake:
    """A request for a WebSocket: `raw` as it came, `target` its path with the query, header names in lower case."""

    raw: bytes
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]


class Bridge(Protocol):
    """What has taken over a viewer's connection. All but `from_viewer` may come at any time."""

    @property
    def watched(self) -> bool:
        """Whether somebody uses the sandbox for as long as this is open; else only by what he sends."""
        ...

    def from_viewer(self, data: bytes) -> None:
        """What the viewer sent after its handshake."""
        ...

    def hold(self) -> None:
        """The viewer takes no more for now."""
        ...

    def go_on(self) -> None:
        """The viewer takes more again."""
        ...

    def leave(self) -> None:
        """Says goodbye to the viewer: the service ends."""
        ...

    def viewer_lost(self) -> None:
        """The viewer's connection is gone."""
        ...


Door = Callable[[Handshake, asyncio.Transport], Awaitable[Bridge]]
"""Takes over a viewer's connection and answers its handshake, or raises Failure with nothing written."""


class Upgrade(asyncio.Protocol):
    """One connection that asked for a WebSocket; what uvicorn takes for its `ws` protocol."""

    def __init__(self, door: Door, token: Token, activity: Activity, connections: set[object]) -> None:
        """`connections` are uvicorn's, which it tells when it ends."""
        self._door = door
        self._token = token
        self._activity = activity
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._bridge: Bridge | None = None
        self._held = ExitStack()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by uvicorn with the connection as it is."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """First the whole handshake, written anew by uvicorn; then what follows."""
        if self._bridge is not None:
            if not self._bridge.watched:
                self._activity.touch()
            self._bridge.from_viewer(data)
        elif self._opening is None and self._transport is not None:
            self._transport.pause_reading()
            self._opening = asyncio.create_task(self._open(_parsed(data), self._transport))

    def pause_writing(self) -> None:
        """From the transport."""
        if self._bridge is not None:
            self._bridge.hold()

    def resume_writing(self) -> None:
        """From the transport."""
        if self._bridge is not None:
            self._bridge.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the transport."""
        self._connections.discard(self)
        if self._opening is not None:
            self._opening.cancel()
        if self._bridge is not None:
            self._bridge.viewer_lost()
        self._held.close()

    def shutdown(self) -> None:
        """Called by uvicorn when it is to end."""
        if self._bridge is not None:
            self._bridge.leave()
        elif self._transport is not None:
            self._transport.close()

    async def _open(self, handshake: Handshake, transport: asyncio.Transport) -> None:
        if not self._token.opens(handshake.headers.get("authorization", "")):
            _refuse(transport, not_allowed())
            return
        self._held.enter_context(self._activity.use())
        try:
            self._bridge = await self._door(handshake, transport)
        except Failure as failure:
            _refuse(transport, refusal(failure.status, failure.message))
        except Exception:
            log.exception("fault in opening %s", handshake.path)
            _refuse(transport, refusal(500, "a fault in the sandbox service; its log has the details"))
        else:
            if not self._bridge.watched:
                self._held.close()
            transport.resume_reading()


def _parsed(head: bytes) -> Handshake:
    lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return Handshake(head, lines[0].split(" ")[1], headers)


def _refuse(transport: asyncio.Transport, response: Response) -> None:
    """Answers a handshake with plain HTTP, and ends the connection."""
    lines = [f"HTTP/1.1 {response.status_code} Refused".encode(), b"connection: close"]
    lines += [name + b": " + value for name, value in response.raw_headers]
    transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
    transport.close()
