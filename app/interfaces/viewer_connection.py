"""A WebSocket connection whose client cannot make the server keep memory or the connection without reading.

The server's WebSocket protocol (`uvicorn`) waits without a limit until a client has read everything, sends an answer to
every ping, and keeps the parts of a message however many they are. See docs/decisions/0012-viewers.md.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

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

LINGER_SECONDS = 10.0
"""Maximum time that a client may take to read the rest after its connection was closed, in seconds."""

SHUTDOWN_SECONDS = 1.0
"""The same as `LINGER_SECONDS` when the server shuts down, in seconds."""

_PONG, _CLOSE = b"\x8a", b"\x88"
"""First byte of a frame, by its type."""


class ViewerConnection(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol on a `_BoundedTransport`, with a limit for the parts of a message."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the transport; see `asyncio.Protocol`."""
        # uvloop's transport is no subclass of `asyncio.Transport`.
        self._bounded = _BoundedTransport(cast("asyncio.Transport", transport))
        super().connection_made(self._bounded)

    def pause_writing(self) -> None:
        """Tell the transport that its client does not read; see `asyncio.Protocol`."""
        super().pause_writing()
        self._bounded.pause_pongs()

    def resume_writing(self) -> None:
        """Tell the transport that its client reads again; see `asyncio.Protocol`."""
        super().resume_writing()
        self._bounded.resume_pongs()

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


class _BoundedTransport(asyncio.Transport):
    """A transport that aborts a closed connection whose client does not read, and bounds the pongs that it keeps."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self.linger_seconds = LINGER_SECONDS
        self._transport = transport
        self._paused = False
        self._pong = b""

    def write(self, data: Any) -> None:
        """Write `data`. While the client does not read, keep only the newest pong, as the protocol allows."""
        if self._paused and data[:1] == _PONG:
            self._pong = data
            return
        self._transport.write(data)
        if data[:1] == _CLOSE:
            self._abort_later()

    def pause_pongs(self) -> None:
        """Keep pongs back from now on."""
        self._paused = True

    def resume_pongs(self) -> None:
        """Write the pong that was kept back."""
        self._paused = False
        if self._pong and not self.is_closing():
            self._transport.write(self._pong)
        self._pong = b""

    def close(self) -> None:
        """Close the connection; abort it if the client does not read the rest in time."""
        self._transport.close()
        self._abort_later()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or being closed."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Stop receiving data."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive data again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that wait to be sent."""
        return self._transport.get_write_buffer_size()

    def _abort_later(self) -> None:
        asyncio.get_running_loop().call_later(self.linger_seconds, self._transport.abort)
