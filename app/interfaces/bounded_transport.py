"""A transport that gives up on clients which do not read, and keeps little for them meanwhile."""

import asyncio
from socket import AF_UNIX, IPPROTO_TCP, TCP_NOTSENT_LOWAT
from typing import Any

LINGER_SECONDS = 10.0
"""Maximum time that a client may take to read the rest after its connection was closed, in seconds."""

STALL_SECONDS = 30.0
"""Maximum time that a client may read nothing while data waits for it, in seconds."""

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
        self._limit_unsent(UNSENT_BYTES)

    def unwrap(self) -> asyncio.Transport:
        """Remove the limits and return the transport."""
        self.end_stall()
        self._transport.set_write_buffer_limits()
        self._limit_unsent(0)
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
        asyncio.get_running_loop().call_later(self.linger_seconds, self._transport.abort)

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

    def _check_progress(self) -> None:
        if self._transport.get_write_buffer_size() < self._waiting:
            self.begin_stall()
        else:
            self._transport.abort()

    def _limit_unsent(self, size: int) -> None:
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.family != AF_UNIX:
            connection.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, size)
