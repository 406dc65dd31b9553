"""The server's side of a WebSocket, on a transport whose handshake was already read."""

import asyncio
import struct
from collections.abc import Iterator, Sequence

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from sandbox.bridges.websocket import Handshake
from sandbox.web import Failure

GOING_AWAY, UNSUPPORTED, LOST = 1001, 1003, 1011
"""Close codes (RFC 6455, section 7.4.1)."""
FRAME_HEAD_BYTES = 10
"""Maximum length of the head of a frame, in bytes."""
_CLOSE_SECONDS = 2.0
"""Maximum wait for the other side's close frame, in seconds."""
_BINARY = Subprotocol("binary")


def frame_head(opcode: Opcode, size: int) -> bytes:
    """Return the head of an unmasked frame of `size` bytes in its shortest form (RFC 6455, section 5.2)."""
    if size < 126:
        return struct.pack(">BB", 0x80 | opcode, size)
    if size < 65536:
        return struct.pack(">BBH", 0x80 | opcode, 126, size)
    return struct.pack(">BBQ", 0x80 | opcode, 127, size)


def _select_subprotocol(_: ServerProtocol, offers: Sequence[Subprotocol]) -> Subprotocol | None:
    return _BINARY if _BINARY in offers else None


class ServerSocket:
    """Parses what the other side sends. Its owner writes data frames to the transport itself, to avoid copies."""

    def __init__(self, transport: asyncio.Transport, handshake: Handshake, *, max_frame_bytes: int) -> None:
        """Parse the handshake. `flush` answers it.

        Raises:
            Failure: 400 if the request is not a WebSocket handshake.
        """
        self._transport = transport
        self._protocol = ServerProtocol(select_subprotocol=_select_subprotocol, max_size=max_frame_bytes)
        self._lost = False
        self.closing = False
        """Whether a close frame was sent."""
        self._accept(handshake)

    def receive(self, data: bytes) -> Iterator[Frame]:
        """Parse data of the other side and yield its data frames. Answer its control frames."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                if not self.closing:
                    yield event
        self.flush()

    def flush(self) -> None:
        """Send what the library has prepared."""
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:  # the library's sign that the closing handshake is complete
                self._transport.close()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame. Do nothing if the connection is closed."""
        if self._lost or self._protocol.state is not State.OPEN:
            return
        self.closing = True
        self._protocol.send_close(code, reason)
        self.flush()
        # The other side answers and closes the connection. If it does not, the connection is closed after a while.
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._transport.close)

    def connection_lost(self) -> None:
        """Record that the connection is closed."""
        self._lost = True

    def _accept(self, handshake: Handshake) -> None:
        self._protocol.receive_data(handshake.raw)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                response = self._protocol.accept(event)
                if response.status_code == 101:
                    self._protocol.send_response(response)
                    return
        raise Failure(400, "not a WebSocket handshake")
