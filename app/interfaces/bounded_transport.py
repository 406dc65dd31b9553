"""A transport that gives up on clients which do not read, and keeps little for them meanwhile."""

import asyncio
import logging
import struct
from contextlib import suppress
from socket import AF_UNIX, IPPROTO_TCP, SO_LINGER, SOL_SOCKET, TCP_NOTSENT_LOWAT, TCP_USER_TIMEOUT
from typing import Any

log = logging.getLogger(__name__)

LINGER_SECONDS = 10.0
"""Maximum time that a client may take to read the rest after its connection was closed, in seconds."""

STALL_SECONDS = 25.0
"""Maximum time that a client may read nothing, or less than `MIN_READ_RATE`, while data waits for it, in seconds."""

MIN_READ_RATE = 250
"""Bytes per second that a client must read, on average, while data waits for it."""

WRITE_BUFFER_BYTES = 16 * 1024
"""Size of the data waiting for a client at which the service waits for it, in bytes."""

UNSENT_BYTES = 32 * 1024
"""Maximum size of the data that the kernel keeps for a client besides what is on its way, in bytes.

The kernel would otherwise take megabytes for each client that does not read: its memory, and the time to copy them.
"""


class BoundedTransport(asyncio.Transport):
    """Wraps a transport: aborts a closed connection whose client does not read, and one whose client stalls."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self.linger_seconds = LINGER_SECONDS
        self._transport = transport
        self._waiting = 0
        self._stall_timer: asyncio.TimerHandle | None = None

    def limit_buffers(self) -> None:
        """Limit what the process and the kernel keep for the client."""
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._set_option(IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        # Also data that only the kernel keeps, because it is little, or because the connection is a WebSocket.
        self._set_option(IPPROTO_TCP, TCP_USER_TIMEOUT, int(STALL_SECONDS * 1000))

    def unwrap(self) -> asyncio.Transport:
        """Remove the limits and return the transport."""
        self.end_stall()
        self._transport.set_write_buffer_limits()
        self._set_option(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 0)
        return self._transport

    def begin_stall(self) -> None:
        """Abort the connection after `STALL_SECONDS`, and again so long after each progress, until `end_stall`."""
        self._waiting = self._transport.get_write_buffer_size()
        self._stall_timer = asyncio.get_running_loop().call_later(STALL_SECONDS, self._check_progress)

    def end_stall(self) -> None:
        """Note that the client has read enough."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def connection_lost(self, error: Exception | None) -> None:
        """Log a connection that the kernel closed because its client did not read, and end all waiting."""
        self.end_stall()
        if isinstance(error, TimeoutError):
            log.info("connection closed: the client does not read or does not respond")

    def write(self, data: Any) -> None:
        """Write `data`."""
        self._transport.write(data)

    def write_eof(self) -> None:
        """End the data for the client; its own is still received."""
        self._transport.write_eof()

    def close(self) -> None:
        """Close the connection; abort it if the client does not read the rest in time."""
        if self._transport.get_write_buffer_size():
            self.abort_later()
        self._transport.close()

    def abort_later(self) -> None:
        """Abort the connection after `linger_seconds`."""
        asyncio.get_running_loop().call_later(self.linger_seconds, self.abort)

    def abort(self) -> None:
        """Close the connection at once. The kernel discards what the client has not read."""
        # With a linger time of 0 seconds, closing resets the connection.
        self._set_option(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
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

    def _check_progress(self) -> None:
        read = self._waiting - self._transport.get_write_buffer_size()
        if read > MIN_READ_RATE * STALL_SECONDS:
            self.begin_stall()
        else:
            log.info(
                "connection closed: the client does not read", extra={"bytes_read": read, "seconds": STALL_SECONDS}
            )
            self.abort()

    def _set_option(self, level: int, option: int, value: int | bytes) -> None:
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.family != AF_UNIX:
            with suppress(OSError, ValueError):  # The connection is closed already; uvloop raises ValueError then.
                connection.setsockopt(level, option, value)
