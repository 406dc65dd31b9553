"""WebSocket connections: authentication and handshake, before a bridge takes over.

uvicorn passes a connection that requests a WebSocket to our own protocol instead of an ASGI application. A bridge
copies
bytes between two sockets; a message object and a queue for each copy would cost more than the copy itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, cast

from starlette.responses import Response

from sandbox.activity import Activity
from sandbox.auth import Token, unauthorized
from sandbox.web import Failure, error_response

log = logging.getLogger("sandbox")


@dataclass(frozen=True)
class Handshake:
    """A request for a WebSocket.

    Attributes:
        raw: The request as it arrived.
        target: Path with query.
        headers: Headers with names in lower case.
    """

    raw: bytes
    target: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.target.partition("?")[0]


class Bridge(Protocol):
    """The owner of a viewer's connection after the handshake."""

    @property
    def counts_as_use(self) -> bool:
        """Whether the sandbox counts as used while the bridge is open. If not, only received data counts."""
        ...

    def receive(self, data: bytes) -> None:
        """Forward data that the viewer sent after its handshake."""
        ...

    def pause(self) -> None:
        """Stop sending to the viewer."""
        ...

    def resume(self) -> None:
        """Continue sending to the viewer."""
        ...

    def shut_down(self) -> None:
        """Close the viewer's connection, because the service ends."""
        ...

    def connection_lost(self) -> None:
        """Close the backend's connection, because the viewer's connection is closed."""
        ...


BridgeOpener = Callable[[Handshake, asyncio.Transport], Awaitable[Bridge]]
"""Takes over a viewer's connection and answers its handshake, or raises `Failure` before anything is written."""


class WebSocketProtocol(asyncio.Protocol):
    """One connection that requests a WebSocket. uvicorn uses it as its `ws` protocol."""

    def __init__(self, door: BridgeOpener, token: Token, activity: Activity, connections: set[object]) -> None:
        """Create the protocol. `connections`: uvicorn's set of open connections."""
        self._open_bridge = door
        self._token = token
        self._activity = activity
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._bridge: Bridge | None = None
        self._use = ExitStack()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`: uvicorn passes the connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Implement `asyncio.Protocol`: first the whole handshake, written by uvicorn, then the viewer's data."""
        if self._bridge is not None:
            if not self._bridge.counts_as_use:
                self._activity.touch()
            self._bridge.receive(data)
        elif self._opening is None and self._transport is not None:
            self._transport.pause_reading()
            self._opening = asyncio.create_task(self._open(_parsed(data), self._transport))

    def pause_writing(self) -> None:
        """Implement `asyncio.Protocol`."""
        if self._bridge is not None:
            self._bridge.pause()

    def resume_writing(self) -> None:
        """Implement `asyncio.Protocol`."""
        if self._bridge is not None:
            self._bridge.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.Protocol`: the viewer's connection is closed."""
        self._connections.discard(self)
        if self._opening is not None:
            self._opening.cancel()
        if self._bridge is not None:
            self._bridge.connection_lost()
        self._use.close()

    def shutdown(self) -> None:
        """Close the connection, because the server ends."""
        if self._bridge is not None:
            self._bridge.shut_down()
        elif self._transport is not None:
            self._transport.close()

    async def _open(self, handshake: Handshake, transport: asyncio.Transport) -> None:
        if not self._token.matches(handshake.headers.get("authorization", "")):
            _refuse(transport, unauthorized())
            return
        self._use.enter_context(self._activity.use())
        try:
            self._bridge = await self._open_bridge(handshake, transport)
        except Failure as failure:
            _refuse(transport, error_response(failure.status, failure.message))
        except Exception:
            log.exception("fault in opening %s", handshake.path)
            _refuse(transport, error_response(500, "a fault in the sandbox service; its log has the details"))
        else:
            if not self._bridge.counts_as_use:
                self._use.close()
            transport.resume_reading()


def _parsed(head: bytes) -> Handshake:
    lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return Handshake(head, lines[0].split(" ")[1], headers)


def _refuse(transport: asyncio.Transport, response: Response) -> None:
    """Refuse a handshake with a plain HTTP response and close the connection."""
    lines = [f"HTTP/1.1 {response.status_code} Refused".encode(), b"connection: close"]
    lines += [name + b": " + value for name, value in response.raw_headers]
    transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
    transport.close()
