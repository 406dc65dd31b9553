"""`WS /vnc`: a viewer's binary messages on the one side, the bytes of the VNC server's unix socket on the other."""

import asyncio
from collections.abc import Sequence

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from sandbox.bridges.inner import Inner
from sandbox.bridges.upgrade import Handshake
from sandbox.failure import Failure

_LARGEST_MESSAGE = 16 * 1024 * 1024
"""A viewer sends keys, pointer moves and now and then a clipboard."""
_CLOSE_SECONDS = 2.0
_GOING_AWAY, _UNSUPPORTED, _LOST = 1001, 1003, 1011
_BINARY = Subprotocol("binary")


def _choose(_: ServerProtocol, offers: Sequence[Subprotocol]) -> Subprotocol | None:
    return _BINARY if _BINARY in offers else None


class VncBridge:
    """One viewer. What it sends is parsed by the WebSocket library; what the desktop sends, which is nearly all there
    is, only gets the head of a frame before it."""

    watched = True

    def __init__(self, viewer: asyncio.Transport, handshake: Handshake) -> None:
        """Raises Failure 400 when this is no handshake."""
        self._viewer = viewer
        self._socket = ServerProtocol(select_subprotocol=_choose, max_size=_LARGEST_MESSAGE)
        self._accept(handshake)
        self._inner = Inner(viewer, made=self._flush, lost=self._desktop_lost, framed=True)
        self._lost = False
        self._parting = False
        """We have said goodbye: nothing more goes to the desktop."""

    async def open(self, path: str) -> None:
        """Connects to the unix socket at `path` and answers the handshake. Raises OSError."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self._inner, path)
        if self._lost:
            self._inner.close()

    def from_viewer(self, data: bytes) -> None:
        """What the viewer sent after its handshake."""
        self._socket.receive_data(data)
        for event in self._socket.events_received():
            if not isinstance(event, Frame) or self._parting:
                continue
            if event.opcode in (Opcode.BINARY, Opcode.CONT):
                self._inner.write(bytes(event.data))
            elif event.opcode is Opcode.TEXT:
                self._say_goodbye(_UNSUPPORTED, "this is a stream of bytes: send binary messages")
        self._flush()

    def hold(self) -> None:
        """The viewer takes no more for now."""
        self._inner.hold()

    def go_on(self) -> None:
        """The viewer takes more again."""
        self._inner.go_on()

    def leave(self) -> None:
        """The service ends."""
        self._say_goodbye(_GOING_AWAY, "the sandbox is ending")

    def viewer_lost(self) -> None:
        """The viewer's connection is gone."""
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

    def _desktop_lost(self) -> None:
        self._say_goodbye(_LOST, "the desktop has ended the connection")

    def _say_goodbye(self, code: int, reason: str) -> None:
        if self._lost or self._socket.state is not State.OPEN:
            return
        self._parting = True
        self._socket.send_close(code, reason)
        self._flush()
        # The viewer answers and ends the connection; one that does not is left.
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._viewer.close)

    def _flush(self) -> None:
        for data in self._socket.data_to_send():
            if data:
                self._viewer.write(data)
            else:  # the library's sign that the closing handshake is over
                self._viewer.close()
