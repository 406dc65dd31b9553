"""`WS /cdp/devtools/browser/<id>` and `…/page/<target>`: a driver's session on Chromium's DevTools."""

import asyncio
import logging

from websockets.frames import Opcode

from sandbox.bridges.server_socket import GOING_AWAY, LOST, UNSUPPORTED, ServerSocket, frame_head
from sandbox.bridges.websocket import Handshake
from sandbox.parts.devtools import MAX_MESSAGE_BYTES, Attachment, DevTools, DevToolsError
from sandbox.web import Failure

_MAX_BACKLOG_BYTES = 64 * 1024 * 1024
"""Number of bytes that wait for a driver from which its connection is closed.

One pipe serves all drivers, so it cannot wait for one of them.
"""
_TOO_LARGE = 1009

log = logging.getLogger("sandbox")


class CdpBridge:
    """One driver's connection."""

    counts_as_use = False
    """A driver stays connected while it is idle, so only the data that it sends counts as use."""

    def __init__(self, transport: asyncio.Transport, handshake: Handshake) -> None:
        """Parse the handshake.

        Raises:
            Failure: 400 if the request is not a WebSocket handshake.
        """
        self._transport = transport
        self._socket = ServerSocket(transport, handshake, max_frame_bytes=MAX_MESSAGE_BYTES)
        self._kind, _, self._id = handshake.path.removeprefix("/cdp/devtools/").partition("/")
        self._message = bytearray()
        """The fragments so far of a fragmented message."""
        self._devtools: DevTools | None = None
        self._attachment: Attachment | None = None
        self._lost = False

    async def open(self, devtools: DevTools) -> None:
        """Attach to the browser or page and answer the handshake.

        Raises:
            Failure: 404 if there is no such browser or page.
            OSError: The browser has ended or does not answer.
        """
        if self._kind not in ("browser", "page") or (self._kind == "browser" and self._id != devtools.browser_id):
            raise Failure(404, f"no such {self._kind}: {self._id}")
        try:
            attachment = await devtools.attach(self, self._id if self._kind == "page" else "")
        except DevToolsError:
            raise Failure(404, f"No such target id: {self._id}") from None
        self._devtools, self._attachment = devtools, attachment
        self._socket.flush()

    def receive(self, data: bytes) -> None:
        """Forward the messages in data of the driver."""
        for frame in self._socket.receive(data):
            if frame.opcode is Opcode.BINARY:
                self._socket.close(UNSUPPORTED, "send text messages")
                return
            if len(self._message) + len(frame.data) > MAX_MESSAGE_BYTES:
                self._socket.close(_TOO_LARGE, "the message is too large")
                return
            if not frame.fin or self._message:
                self._message += frame.data
            if frame.fin:
                self._forward(self._message or bytes(frame.data))
                self._message = bytearray()

    def deliver(self, message: bytes | bytearray) -> None:
        """Implement `Driver`: send a message to the driver."""
        if self._lost or self._socket.closing:
            return
        if self._transport.get_write_buffer_size() > _MAX_BACKLOG_BYTES:
            log.warning("closed the connection of a DevTools client that does not read")
            self._transport.abort()
            return
        self._transport.write(frame_head(Opcode.TEXT, len(message)))
        self._transport.write(message)

    def close(self, reason: str) -> None:
        """Implement `Driver`: close the connection."""
        self._socket.close(LOST, reason)

    def pause_driver(self) -> None:
        """Implement `Driver`: stop reading from the driver."""
        self._transport.pause_reading()

    def resume_driver(self) -> None:
        """Implement `Driver`: continue reading from the driver."""
        self._transport.resume_reading()

    def pause(self) -> None:
        """Do nothing: Chromium's pipe cannot wait for one driver."""

    def resume(self) -> None:
        """Do nothing: see `pause`."""

    def shut_down(self) -> None:
        """Send a close frame, because the service ends."""
        self._socket.close(GOING_AWAY, "the sandbox is ending")

    def connection_lost(self) -> None:
        """End the driver's sessions, because its connection is closed."""
        self._lost = True
        self._socket.connection_lost()
        if self._devtools is not None and self._attachment is not None:
            self._devtools.detach(self._attachment)

    def _forward(self, message: bytes | bytearray) -> None:
        if self._devtools is not None and self._attachment is not None:
            self._devtools.send(self._attachment, message)
