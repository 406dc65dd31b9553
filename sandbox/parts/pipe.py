"""Chromium's end of its DevTools pipe: two socket pairs, on which each message ends with NUL.

Sockets instead of pipes, because a pipe can be opened again through `/proc/<pid>/fd`.
"""

import asyncio
import socket

from sandbox.parts.devtools import MAX_MESSAGE_BYTES, DevTools

_READ_BYTES = 256 * 1024
"""Maximum number of bytes to read at once."""
_KEPT_BYTES = 1024
"""Number of bytes at each end of a too large message to keep."""


class DevToolsPipe(asyncio.BufferedProtocol):
    """Splits what Chromium writes into messages, and writes messages to it."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """Create the pipe without opening it. `max_message_bytes`: larger messages are not kept."""
        self.devtools = DevTools(self._write)
        self._limit = max_message_bytes
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._message = bytearray()
        self._dropped_head = b""
        """First bytes of a message that is too large, while the rest of it is read."""
        self._reading: asyncio.BaseTransport | None = None
        self._writing: asyncio.Transport | None = None

    async def open(self) -> tuple[socket.socket, socket.socket]:
        """Open both directions. Return the sockets that Chromium reads from and writes to; the caller closes them."""
        loop = asyncio.get_running_loop()
        ours, chromium_reads = socket.socketpair()
        self._writing, _ = await loop.create_unix_connection(lambda: _Writer(self), sock=ours)
        ours, chromium_writes = socket.socketpair()
        self._reading, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        return chromium_reads, chromium_writes

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`: return the buffer to read into."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`: take the messages that are complete."""
        start = 0
        while (end := self._buffer.find(0, start, nbytes)) >= 0:
            self._append(self._view[start:end])
            self._complete()
            start = end + 1
        self._append(self._view[start:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.Protocol`: Chromium has ended."""
        self.close()

    def close(self) -> None:
        """Close both directions and all drivers. Idempotent. Chromium ends when it reads the end of its pipe."""
        for transport in (self._reading, self._writing):
            if transport is not None:
                transport.close()
        self._reading = self._writing = None
        self._message = bytearray()
        self.devtools.close()

    def _append(self, piece: memoryview) -> None:
        self._message += piece
        if self._dropped_head:
            del self._message[:-_KEPT_BYTES]
        elif len(self._message) > self._limit:
            self._dropped_head = bytes(self._message[:_KEPT_BYTES])
            del self._message[:-_KEPT_BYTES]

    def _complete(self) -> None:
        message, self._message = self._message, bytearray()
        head, self._dropped_head = self._dropped_head, b""
        if head:
            self.devtools.receive_oversized(head, bytes(message))
        else:
            self.devtools.receive(message)

    def _write(self, data: bytes) -> None:
        if self._writing is not None:
            self._writing.write(data)


class _Writer(asyncio.Protocol):
    """The direction to Chromium, which never sends anything on it."""

    def __init__(self, pipe: DevToolsPipe) -> None:
        self._pipe = pipe

    def pause_writing(self) -> None:
        self._pipe.devtools.pause_drivers()

    def resume_writing(self) -> None:
        self._pipe.devtools.resume_drivers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.close()
