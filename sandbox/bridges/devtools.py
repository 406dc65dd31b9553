"""`WS /cdp/devtools/…`: forwards a driver's WebSocket to Chromium without parsing its frames."""

import asyncio
import struct
from collections.abc import Callable
from typing import cast

from sandbox.bridges.websocket import Handshake

_BUFFER_BYTES = 256 * 1024
"""Maximum number of bytes to read at once."""
_FLUSH_SECONDS = 2.0
"""Maximum time to send buffered data before a connection is aborted, in seconds."""
_FRAME_HEAD_BYTES = 10
"""Space in front of the data for the longest WebSocket frame head, in bytes."""


class BackendConnection(asyncio.BufferedProtocol):
    """The connection to a local server. Forwards what it reads to the viewer without copying.

    There is one buffer, which the next read overwrites. The viewer's transport must therefore call `pause` whenever it
    has
    not sent everything, which a write limit of 0 ensures.
    """

    def __init__(
        self, viewer: asyncio.Transport, *, on_connected: Callable[[], None], on_lost: Callable[[], None], framed: bool
    ) -> None:
        """Create the protocol for one connection.

        Args:
            viewer: Transport of the viewer's connection.
            on_connected: Called when the connection is open, before anything is read.
            on_lost: Called when the connection is closed.
            framed: Whether to send each read as a binary WebSocket message.
        """
        self._viewer = viewer
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._framed = framed
        self._buffer = bytearray(_FRAME_HEAD_BYTES + _BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._transport: asyncio.Transport | None = None
        viewer.set_write_buffer_limits(high=0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._on_connected()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`: return the buffer to read into."""
        return self._view[_FRAME_HEAD_BYTES:]

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`: forward `nbytes` to the viewer."""
        start = self._write_frame_head(nbytes) if self._framed else _FRAME_HEAD_BYTES
        self._viewer.write(self._view[start : _FRAME_HEAD_BYTES + nbytes])

    def pause_writing(self) -> None:
        """Implement `asyncio.Protocol`: stop reading from the viewer."""
        self._viewer.pause_reading()

    def resume_writing(self) -> None:
        """Implement `asyncio.Protocol`: continue reading from the viewer."""
        self._viewer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.Protocol`: the connection is closed."""
        self._transport = None
        self._on_lost()

    def write(self, data: bytes) -> None:
        """Send `data` to the server. Do nothing if the connection is closed."""
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Stop reading from the server."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Continue reading from the server."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the connection once all data is sent or the flush times out; then `on_lost` is called."""
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._transport.abort)

    def _write_frame_head(self, size: int) -> int:
        """Write a frame head in front of the data and return its position.

        Only the shortest form is valid (RFC 6455, section 5.2).
        """
        if size < 126:
            struct.pack_into(">BB", self._buffer, _FRAME_HEAD_BYTES - 2, 0x82, size)
            return _FRAME_HEAD_BYTES - 2
        if size < 65536:
            struct.pack_into(">BBH", self._buffer, _FRAME_HEAD_BYTES - 4, 0x82, 126, size)
            return _FRAME_HEAD_BYTES - 4
        struct.pack_into(">BBQ", self._buffer, _FRAME_HEAD_BYTES - 10, 0x82, 127, size)
        return _FRAME_HEAD_BYTES - 10


_FORWARDED_HEADERS = ("upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol")
"""Headers of the handshake to forward to Chromium.

`sec-websocket-extensions` is left out to avoid compression, `origin` because Chromium would refuse it, and the token.
"""


class DevToolsBridge:
    """A driver's connection to DevTools. After the handshake, neither direction is parsed."""

    counts_as_use = False
    """A driver stays connected while it is idle, so only the data that it sends counts as use."""

    def __init__(self, viewer: asyncio.Transport, handshake: Handshake, target: str) -> None:
        """Create the bridge. `target`: path to request from Chromium."""
        self._viewer = viewer
        self._handshake = handshake
        self._target = target
        self._host = ""
        self._lost = False
        self._inner = BackendConnection(
            viewer, on_connected=self._send_handshake, on_lost=self._on_chromium_lost, framed=False
        )

    async def open(self, port: int) -> None:
        """Connect to DevTools at `port` on loopback. Chromium itself answers the handshake.

        Raises:
            OSError: The connection failed.
        """
        self._host = f"127.0.0.1:{port}"
        await asyncio.get_running_loop().create_connection(lambda: self._inner, "127.0.0.1", port)
        if self._lost:
            self._inner.close()

    def receive(self, data: bytes) -> None:
        """Forward data of the driver."""
        self._inner.write(data)

    def pause(self) -> None:
        """Stop reading from Chromium."""
        self._inner.pause()

    def resume(self) -> None:
        """Continue reading from Chromium."""
        self._inner.resume()

    def shut_down(self) -> None:
        """Close the driver's connection, because the service ends."""
        self._viewer.close()

    def connection_lost(self) -> None:
        """Close the connection to Chromium, because the driver's connection is closed."""
        self._lost = True
        self._inner.close()

    def _send_handshake(self) -> None:
        lines = [f"GET {self._target} HTTP/1.1", f"Host: {self._host}"]
        headers = self._handshake.headers
        lines += [f"{name}: {headers[name]}" for name in _FORWARDED_HEADERS if name in headers]
        self._inner.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def _on_chromium_lost(self) -> None:
        self._viewer.close()
