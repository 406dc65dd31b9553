"""A WebSocket connection whose client cannot make the server keep memory or the connection without reading.

The server's WebSocket protocol (`uvicorn`) waits without a limit until a client has read everything, sends an answer to
every ping, and keeps the parts of a message however many they are. See docs/decisions/0012-viewers.md.
"""

import asyncio
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from app.interfaces.bounded_transport import BoundedTransport
from app.interfaces.envelope import raw_failure

MAX_MESSAGE = 1 << 20
"""Maximum size of a client's message, in bytes; a longer one closes the connection with 1009."""

PING_SECONDS = 20.0
"""Seconds between two pings to a client."""

PONG_SECONDS = 60.0
"""Maximum time in which a client must answer a ping, in seconds.

Everything sent before the ping arrives first. On a slow line that takes long: a picture of a desktop is megabytes.
"""

MAX_FRAGMENTS = 1024
"""Maximum number of parts of a message; empty parts do not count towards its size."""

SHUTDOWN_SECONDS = 1.0
"""Maximum time that a client may take to read the rest when the server shuts down, in seconds."""

_PONG, _CLOSE = b"\x8a", b"\x88"
"""First byte of a frame, by its type."""


class ViewerConnection(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol on a `_ViewerTransport`, with a limit for the parts of a message."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the transport; see `asyncio.Protocol`."""
        # uvloop's transport is no subclass of `asyncio.Transport`.
        self._bounded = _ViewerTransport(cast("asyncio.Transport", transport))
        super().connection_made(self._bounded)

    def connection_lost(self, exc: Exception | None) -> None:
        """Log why the connection was lost; see `asyncio.Protocol`."""
        self._bounded.connection_lost(exc)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Tell the transport that its client does not read; see `asyncio.Protocol`."""
        super().pause_writing()
        self._bounded.pause_pongs()

    def resume_writing(self) -> None:
        """Tell the transport that its client reads again; see `asyncio.Protocol`."""
        super().resume_writing()
        self._bounded.resume_pongs()

    def handle_connect(self, event: Request) -> None:
        """Open the WebSocket if the handshake is valid."""
        response = ServerProtocol().accept(event)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            super().handle_connect(event)
        else:
            self._refuse_handshake(HTTPStatus(response.status_code), (response.body or b"").decode().strip())

    def data_received(self, data: bytes) -> None:
        """Parse `data`; refuse a handshake that cannot be parsed."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_complete:
            self._refuse_handshake(HTTPStatus.BAD_REQUEST, "this is not a valid WebSocket handshake")

    async def send(self, message: Any) -> None:
        """Send a message of the application.

        A handshake that was refused with a response is complete. uvicorn would report an error when the application
        returns after it.
        """
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def shutdown(self) -> None:
        """Close the connection because the server shuts down; uvicorn's server calls this."""
        self._bounded.linger_seconds = SHUTDOWN_SECONDS
        super().shutdown()

    def handle_cont(self, event: Frame) -> None:
        """Refuse a message that has too many parts."""
        if len(self.frames) >= MAX_FRAGMENTS and not self.close_sent:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
            self.handle_parser_exception()
            return
        super().handle_cont(event)

    def _refuse_handshake(self, status: HTTPStatus, msg: str) -> None:
        self.handshake_complete = self.close_sent = True
        self.transport.write(raw_failure(status, msg))
        self.transport.close()


class _ViewerTransport(BoundedTransport):
    """A transport that bounds the pongs it keeps, too."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._paused = False
        self._pong = b""

    def write(self, data: Any) -> None:
        """Write `data`. While the client does not read, keep only the newest pong, as the protocol allows."""
        if self._paused and data[:1] == _PONG:
            self._pong = data
            return
        super().write(data)
        if data[:1] == _CLOSE:
            self.abort_later()

    def pause_pongs(self) -> None:
        """Keep pongs back from now on."""
        self._paused = True

    def resume_pongs(self) -> None:
        """Write the pong that was kept back."""
        self._paused = False
        if self._pong and not self.is_closing():
            super().write(self._pong)
        self._pong = b""
