"""`WS /vnc`: forwards a viewer's binary messages to the VNC server's unix socket and back."""

import asyncio
from collections.abc import Sequence

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from sandbox.bridges.devtools import BackendConnection
from sandbox.bridges.websocket import Handshake
from sandbox.web import Failure

_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Maximum size of a viewer's message, in bytes. Viewers send keys, pointer moves and clipboard texts."""
_CLOSE_SECONDS = 2.0
"""Maximum wait for the viewer's close frame, in seconds."""
_GOING_AWAY, _UNSUPPORTED, _LOST = 1001, 1003, 1011
_BINARY = Subprotocol("binary")


def _select_subprotocol(_: ServerProtocol, offers: Sequence[Subprotocol]) -> Subprotocol | None:
    return _BINARY if _BINARY in offers else None


class VncBridge:
    """One viewer's connection to the desktop.

    The WebSocket library parses what the viewer sends. Data of the desktop, which is nearly all of the traffic, only
    gets
    a frame head.
    """

    counts_as_use = True

    def __init__(self, viewer: asyncio.Transport, handshake: Handshake) -> None:
        """Parse the handshake.

        Raises:
            Failure: 400 if the request is not a WebSocket handshake.
        """
        self._viewer = viewer
        self._socket = ServerProtocol(select_subprotocol=_select_subprotocol, max_size=_MAX_MESSAGE_BYTES)
        self._accept(handshake)
        self._inner = BackendConnection(viewer, on_connected=self._flush, on_lost=self._on_desktop_lost, framed=True)
        self._lost = False
        self._closing = False
        """Whether a close frame was sent. After that, nothing is forwarded to the desktop."""

    async def open(self, path: str) -> None:
        """Connect to the unix socket at `path` and answer the handshake.

        Raises:
            OSError: The connection failed.
        """
        await asyncio.get_running_loop().create_unix_connection(lambda: self._inner, path)
        if self._lost:
            self._inner.close()

    def receive(self, data: bytes) -> None:
        """Parse data of the viewer and forward its binary messages."""
        self._socket.receive_data(data)
        for event in self._socket.events_received():
            if not isinstance(event, Frame) or self._closing:
                continue
            if event.opcode in (Opcode.BINARY, Opcode.CONT):
                self._inner.write(bytes(event.data))
            elif event.opcode is Opcode.TEXT:
                self._close(_UNSUPPORTED, "this is a stream of bytes: send binary messages")
        self._flush()

    def pause(self) -> None:
        """Stop reading from the desktop."""
        self._inner.pause()

    def resume(self) -> None:
        """Continue reading from the desktop."""
        self._inner.resume()

    def shut_down(self) -> None:
        """Send a close frame, because the service ends."""
        self._close(_GOING_AWAY, "the sandbox is ending")

    def connection_lost(self) -> None:
        """Close the connection to the desktop, because the viewer's connection is closed."""
        self._lost = True
        self._inner.close()

    def _accept(self, handshake: Handshake) -> None:
        self._socket.receive_data(handshake.raw)
        for event in self._socket.events_received():
            if isinstance(event, Request):
                response = self._socket.accept(event)
                if response.status_code == 101:
                    self._socket.send_response(response)
                    return
        raise Failure(400, "not a WebSocket handshake")

    def _on_desktop_lost(self) -> None:
        self._close(_LOST, "the desktop has ended the connection")

    def _close(self, code: int, reason: str) -> None:
        if self._lost or self._socket.state is not State.OPEN:
            return
        self._closing = True
        self._socket.send_close(code, reason)
        self._flush()
        # The viewer answers and closes the connection. If it does not, the connection is closed after a while.
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._viewer.close)

    def _flush(self) -> None:
        for data in self._socket.data_to_send():
            if data:
                self._viewer.write(data)
            else:  # the library's sign that the closing handshake is complete
                self._viewer.close()
