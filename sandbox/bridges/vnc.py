"""`WS /vnc`: forwards a viewer's binary messages to the VNC server's unix socket and back."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

from websockets.frames import Opcode

from sandbox.bridges.server_socket import FRAME_HEAD_BYTES, GOING_AWAY, LOST, UNSUPPORTED, ServerSocket, frame_head
from sandbox.bridges.websocket import Handshake
from sandbox.parts.keyboard import CAPACITY, is_on_every_keyboard

KeyboardPreparer = Callable[[Sequence[int]], Awaitable[None]]
"""Makes sure that the keyboard has keysyms, at most `CAPACITY` of them, which are pressed next."""

_MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Maximum size of a viewer's frame, in bytes. Viewers send keys, pointer moves and clipboard texts."""
_BUFFER_BYTES = 256 * 1024
"""Maximum number of bytes to read at once."""
_FLUSH_SECONDS = 2.0
"""Maximum time to send buffered data before a connection is aborted, in seconds."""


_VERSION_BYTES = 12
_OLDEST_VERSION = b"RFB 003.003\n"
_KEY_EVENT, _KEY_EVENT_BYTES = 4, 8
_QEMU, _QEMU_KEY_EVENT_BYTES = 255, 12


def _cut_text_length(head: bytes) -> int:
    # The length is negative in the extended form.
    return 8 + abs(int.from_bytes(head[4:8], "big", signed=True))


def _qemu_length(head: bytes) -> int:
    if head[1] == 0:
        return _QEMU_KEY_EVENT_BYTES
    return 10 if head[1:4] == b"\x01\x00\x02" else 4


_LENGTHS: Mapping[int, tuple[int, Callable[[bytes], int]]] = {
    0: (1, lambda _: 20),  # SetPixelFormat
    2: (4, lambda head: 4 + 4 * int.from_bytes(head[2:4], "big")),  # SetEncodings
    3: (1, lambda _: 10),  # FramebufferUpdateRequest
    _KEY_EVENT: (1, lambda _: _KEY_EVENT_BYTES),
    5: (1, lambda _: 6),  # PointerEvent
    6: (8, _cut_text_length),  # ClientCutText
    150: (1, lambda _: 10),  # EnableContinuousUpdates
    248: (9, lambda head: 9 + head[8]),  # ClientFence
    251: (8, lambda head: 8 + 16 * head[6]),  # SetDesktopSize
    _QEMU: (4, _qemu_length),
}
"""For each message type: the number of bytes that determine its length, and a function that returns the length."""


class KeyPresses:
    """Finds key presses in what a viewer sends, part by part. After a message of unknown length, it finds nothing more.

    The protocol is RFB 3.3 to 3.8 (RFC 6143, and the extensions of TigerVNC and QEMU).
    """

    def __init__(self) -> None:
        self._greeting = [_VERSION_BYTES]
        """Lengths of the parts of the greeting that are still to come."""
        self._kept = bytearray()
        """Start of an incomplete message: at most what determines its length, or a whole key event."""
        self._skipping = 0
        """Number of bytes of a message that are still to come and do not matter."""
        self._lost = False

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """Return the key presses that `data` completes: the position in `data` after each, and its keysym."""
        found: list[tuple[int, int]] = []
        at = 0
        while at < len(data) and not self._lost:
            if self._skipping:
                step = min(self._skipping, len(data) - at)
                self._skipping -= step
                at += step
                continue
            wanted = self._wanted()
            step = min(wanted - len(self._kept), len(data) - at)
            self._kept += data[at : at + step]
            at += step
            if len(self._kept) == wanted:
                self._take(at, found)
        return found

    def _wanted(self) -> int:
        """Return how many bytes of the message to keep before it is looked at again; 0 for an unknown message."""
        if self._greeting:
            return self._greeting[0]
        if not self._kept:
            return 1
        if self._kept[0] == _KEY_EVENT:
            return _KEY_EVENT_BYTES
        if self._kept[0] == _QEMU:
            return 4 if len(self._kept) < 4 or self._kept[1] != 0 else _QEMU_KEY_EVENT_BYTES
        return _LENGTHS[self._kept[0]][0]

    def _take(self, at: int, found: list[tuple[int, int]]) -> None:
        """Look at the kept bytes, which are as many as wanted, and drop them once they were understood."""
        head = bytes(self._kept)
        if self._greeting:
            del self._greeting[0]
            if len(head) == _VERSION_BYTES:
                # The type of security, which 3.3 lacks, and whether to share.
                self._greeting = [1] if head == _OLDEST_VERSION else [1, 1]
            self._kept.clear()
            return
        known = _LENGTHS.get(head[0])
        if known is None:
            self._lost = True
            self._kept.clear()
            return
        if len(head) < self._wanted():
            return
        length = known[1](head)
        if head[0] == _KEY_EVENT and head[1]:
            found.append((at, int.from_bytes(head[4:8], "big")))
        elif head[0] == _QEMU and length == len(head) == _QEMU_KEY_EVENT_BYTES and head[2:4] != b"\0\0":
            found.append((at, int.from_bytes(head[4:8], "big")))
        self._skipping = length - len(head)
        self._kept.clear()


class DesktopConnection(asyncio.BufferedProtocol):
    """The connection to the VNC server. Sends each read to the viewer as a binary message, without copying.

    There is one buffer, which the next read overwrites. The viewer's transport must therefore call `pause` whenever it
    has not sent everything, which a write limit of 0 ensures.
    """

    def __init__(
        self, viewer: asyncio.Transport, *, on_connected: Callable[[], None], on_lost: Callable[[], None]
    ) -> None:
        """Create the protocol for one connection.

        Args:
            viewer: Transport of the viewer's connection.
            on_connected: Called when the connection is open, before anything is read.
            on_lost: Called when the connection is closed.
        """
        self._viewer = viewer
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._buffer = bytearray(FRAME_HEAD_BYTES + _BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._transport: asyncio.Transport | None = None
        viewer.set_write_buffer_limits(high=0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._on_connected()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`: return the buffer to read into."""
        return self._view[FRAME_HEAD_BYTES:]

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`: forward `nbytes` to the viewer."""
        head = frame_head(Opcode.BINARY, nbytes)
        start = FRAME_HEAD_BYTES - len(head)
        self._buffer[start:FRAME_HEAD_BYTES] = head
        self._viewer.write(self._view[start : FRAME_HEAD_BYTES + nbytes])

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


class VncBridge:
    """One viewer's connection to the desktop.

    The WebSocket library parses what the viewer sends. Data of the desktop, which is nearly all of the traffic, only
    gets a frame head. Neither direction is changed. What follows a key press waits until the keyboard has the key.
    """

    counts_as_use = True

    def __init__(self, viewer: asyncio.Transport, handshake: Handshake, keyboard: KeyboardPreparer) -> None:
        """Parse the handshake.

        Args:
            viewer: Transport of the viewer's connection.
            handshake: The viewer's request.
            keyboard: Called with keysyms before they are pressed.

        Raises:
            Failure: 400 if the request is not a WebSocket handshake.
        """
        self._viewer = viewer
        self._socket = ServerSocket(viewer, handshake, max_frame_bytes=_MAX_FRAME_BYTES)
        self._inner = DesktopConnection(viewer, on_connected=self._socket.flush, on_lost=self._on_desktop_lost)
        self._prepare_keyboard = keyboard
        self._presses = KeyPresses()
        self._waiting: deque[bytes] = deque()
        """Input that waits for `_typing`."""
        self._typing: asyncio.Task[None] | None = None
        self._lost = False

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
        for frame in self._socket.receive(data):
            if frame.opcode is Opcode.TEXT:
                self._socket.close(UNSUPPORTED, "this is a stream of bytes: send binary messages")
            else:
                self._forward(bytes(frame.data))

    def pause(self) -> None:
        """Stop reading from the desktop."""
        self._inner.pause()

    def resume(self) -> None:
        """Continue reading from the desktop."""
        self._inner.resume()

    def shut_down(self) -> None:
        """Send a close frame, because the service ends."""
        self._socket.close(GOING_AWAY, "the sandbox is ending")

    def connection_lost(self) -> None:
        """Close the connection to the desktop, because the viewer's connection is closed."""
        self._lost = True
        self._socket.connection_lost()
        if self._typing is not None:
            self._typing.cancel()
        self._inner.close()

    def _forward(self, data: bytes) -> None:
        if self._typing is None:
            presses = self._rare_presses(data)
            if not presses:
                self._inner.write(data)
                return
            self._viewer.pause_reading()
            self._typing = asyncio.create_task(self._type(data, presses))
        else:
            self._waiting.append(data)

    async def _type(self, data: bytes, presses: list[tuple[int, int]]) -> None:
        """Forward `data`, and what arrives in the meantime, each part once the keyboard has the keys in it."""
        while True:
            start = 0
            for first in range(0, len(presses), CAPACITY):
                batch = presses[first : first + CAPACITY]
                await self._prepare_keyboard([keysym for _, keysym in batch])
                end, _ = batch[-1]
                self._inner.write(data[start:end])
                start = end
            self._inner.write(data[start:])
            if not self._waiting:
                break
            data = self._waiting.popleft()
            presses = self._rare_presses(data)
        self._typing = None
        self._viewer.resume_reading()

    def _rare_presses(self, data: bytes) -> list[tuple[int, int]]:
        return [(end, keysym) for end, keysym in self._presses.feed(data) if not is_on_every_keyboard(keysym)]

    def _on_desktop_lost(self) -> None:
        self._socket.close(LOST, "the desktop has ended the connection")
