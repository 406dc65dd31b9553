"""The inner end of a bridge: a connection to something that listens inside only."""

import asyncio
import struct
from collections.abc import Callable
from typing import cast

_SIZE = 256 * 1024
_FLUSH_SECONDS = 2.0
_ROOM = 10
"""Before what was read there is room for the longest head of a WebSocket frame."""


class Inner(asyncio.BufferedProtocol):
    """Passes on to the viewer what it reads, as fast as the viewer takes it, without copying it.

    There is one buffer: the viewer's transport must call for `hold` (by a write limit of 0) whenever it has not sent
    all of it, for the next read overwrites it.
    """

    def __init__(
        self, viewer: asyncio.Transport, *, made: Callable[[], None], lost: Callable[[], None], framed: bool
    ) -> None:
        """`made` is called when this connection is there, before anything is read from it; `lost` when it is gone.
        `framed` makes each read a binary WebSocket message."""
        self._viewer = viewer
        self._made = made
        self._lost = lost
        self._framed = framed
        self._buffer = bytearray(_ROOM + _SIZE)
        self._view = memoryview(self._buffer)
        self._transport: asyncio.Transport | None = None
        viewer.set_write_buffer_limits(high=0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._made()

    def get_buffer(self, sizehint: int) -> memoryview:
        """From the transport: where to read to."""
        return self._view[_ROOM:]

    def buffer_updated(self, nbytes: int) -> None:
        """From the transport: so much was read."""
        start = self._put_head(nbytes) if self._framed else _ROOM
        self._viewer.write(self._view[start : _ROOM + nbytes])

    def pause_writing(self) -> None:
        """From the transport: no more of the viewer's data for now."""
        self._viewer.pause_reading()

    def resume_writing(self) -> None:
        """From the transport."""
        self._viewer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """From the transport."""
        self._transport = None
        self._lost()

    def write(self, data: bytes) -> None:
        """Sends `data` inside; does nothing when the connection is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def hold(self) -> None:
        """Reads no more for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Reads on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Ends the connection once what was written is sent, or cannot be; `lost` is called then."""
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._transport.abort)

    def _put_head(self, size: int) -> int:
        """Puts the frame's head before what was read; says where it begins. The shortest form is the only valid one."""
        if size < 126:
            struct.pack_into(">BB", self._buffer, _ROOM - 2, 0x82, size)
            return _ROOM - 2
        if size < 65536:
            struct.pack_into(">BBH", self._buffer, _ROOM - 4, 0x82, 126, size)
            return _ROOM - 4
        struct.pack_into(">BBQ", self._buffer, _ROOM - 10, 0x82, 127, size)
        return _ROOM - 10
