"""A viewer that requests the whole desktop in raw pixels repeatedly, and counts the bytes.

- `rfb.py SECONDS unix PATTERN` connects to the Unix socket that PATTERN matches.
- `rfb.py SECONDS tcp ADDRESS:PORT` connects to the port of a VNC server.
- `rfb.py SECONDS ws URL` connects to a WebSocket, with `BENCH_TOKEN` as bearer token if it is set.

Prints one line of JSON: bytes of the RFB protocol, seconds, full screens. It needs only Python, so that it also runs in
a container.
"""

import base64
import glob
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

WARM_UP_SECONDS = 0.3
"""Seconds before the measurement starts."""

IDLE_SECONDS = 60
"""Timeout in seconds of each read."""

_SIZE = 1 << 18
_RAW = 0
_UPDATE, _BELL, _CUT_TEXT = 0, 2, 3
_CLOSE, _PING = 8, 9


class ConnectionFailed(Exception):
    """The server closed the connection or violated the protocol."""


class SocketTransport:
    """RFB directly on a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def pieces(self) -> Iterator[memoryview]:
        """Yield the data as it arrives; each piece is valid until the next one is requested."""
        view = memoryview(bytearray(_SIZE))
        while count := self._socket.recv_into(view):
            yield view[:count]

    def send(self, data: bytes) -> None:
        """Send data."""
        self._socket.sendall(data)


class WebSocketTransport:
    """RFB in the frames of a WebSocket."""

    def __init__(self, sock: socket.socket, url: str, token: str) -> None:
        """Connect.

        Raises:
            ConnectionFailed: The server refuses the connection or accepts compression.
        """
        self._socket = sock
        self._view = memoryview(bytearray(_SIZE))
        self._data = memoryview(b"")
        address = urlsplit(url)
        lines = [
            f"GET {address.path} HTTP/1.1",
            f"Host: {address.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Protocol: binary",
            "Sec-WebSocket-Extensions: permessage-deflate",
        ]
        lines += [f"Authorization: Bearer {token}"] if token else []
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._exactly(1)
        if not head.startswith(b"HTTP/1.1 101") or b"permessage-deflate" in head:
            raise ConnectionFailed(head.decode(errors="replace"))

    def pieces(self) -> Iterator[memoryview]:
        """Do the same as `SocketTransport.pieces`."""
        while True:
            first, size = self._exactly(2)
            if size == 126:
                (size,) = struct.unpack(">H", self._exactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._exactly(8))
            if first & 15 in (_CLOSE, _PING):
                self._control(first & 15, self._exactly(size))
                continue
            while size:
                piece = self._some(size)
                size -= len(piece)
                yield piece

    def send(self, data: bytes) -> None:
        """Send data in one frame."""
        self._frame(2, data)

    def _control(self, opcode: int, data: bytes) -> None:
        if opcode == _CLOSE:
            raise ConnectionFailed(f"closed: {data[2:].decode(errors='replace')}")
        self._frame(10, data)

    def _frame(self, opcode: int, data: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        self._socket.sendall(struct.pack(">BB", 0x80 | opcode, 0x80 | len(data)) + mask + masked)

    def _some(self, most: int) -> memoryview:
        if not self._data:
            count = self._socket.recv_into(self._view)
            if not count:
                raise ConnectionFailed("the connection broke")
            self._data = self._view[:count]
        piece, self._data = self._data[:most], self._data[most:]
        return piece

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += self._some(size - len(found))
        return found


class Desktop:
    """The part of RFB 3.8 that the benchmark needs."""

    def __init__(self, connection: SocketTransport | WebSocketTransport) -> None:
        self._connection = connection
        self._pieces = connection.pieces()
        self._piece = memoryview(b"")
        self.received = 0
        self.width, self.height, self._pixel = self._open()

    def read_screen(self) -> None:
        """Request the whole desktop and read it."""
        self._connection.send(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        pixels = 0
        while pixels < self.width * self.height:
            pixels += self._message()

    def _open(self) -> tuple[int, int, int]:
        self._take(12)
        self._connection.send(b"RFB 003.008\n")
        self._take(self._take(1)[0])
        self._connection.send(b"\x01")  # no password: the connection is authorized elsewhere
        if self._take(4) != bytes(4):
            raise ConnectionFailed("the desktop requires a password")
        self._connection.send(b"\x01")
        width, height, bits = struct.unpack(">HHB", self._take(5))
        self._take(15)
        self._take(*struct.unpack(">I", self._take(4)))
        self._connection.send(struct.pack(">BxHi", 2, 1, _RAW))
        return width, height, bits // 8

    def _message(self) -> int:
        """Read one message and return its number of pixels."""
        kind = self._take(1)[0]
        if kind == _BELL:
            return 0
        if kind == _CUT_TEXT:
            self._skip(struct.unpack(">xxxI", self._take(7))[0])
            return 0
        if kind != _UPDATE:
            raise ConnectionFailed(f"a message of kind {kind}")
        pixels = 0
        for _ in range(struct.unpack(">xH", self._take(3))[0]):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self._take(12))
            if encoding != _RAW:
                raise ConnectionFailed(f"a rectangle in encoding {encoding}")
            self._skip(width * height * self._pixel)
            pixels += width * height
        return pixels

    def _take(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += self._next(size - len(found))
        return found

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._next(size))

    def _next(self, most: int) -> memoryview:
        if not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                raise ConnectionFailed("the connection broke")
            self._piece = piece
        part, self._piece = self._piece[:most], self._piece[most:]
        self.received += len(part)
        return part


def open_transport(kind: str, target: str) -> SocketTransport | WebSocketTransport:
    """Connect to `target`."""
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(IDLE_SECONDS)
        sock.connect(glob.glob(target)[0])
        return SocketTransport(sock)
    address = urlsplit(target if kind == "ws" else f"//{target}")
    sock = socket.create_connection((address.hostname or "", address.port or 80), timeout=IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return (
        WebSocketTransport(sock, target, os.environ.get("BENCH_TOKEN", "")) if kind == "ws" else SocketTransport(sock)
    )


def main() -> None:
    """Measure for the given time, after a warm-up."""
    seconds, kind, target = sys.argv[1:4]
    desktop = Desktop(open_transport(kind, target))
    warm = time.monotonic() + WARM_UP_SECONDS
    while time.monotonic() < warm:
        desktop.read_screen()
    screens, before, began = 0, desktop.received, time.monotonic()
    while (now := time.monotonic()) - began < float(seconds):
        desktop.read_screen()
        screens += 1
    print(json.dumps({"bytes": desktop.received - before, "seconds": now - began, "screens": screens}), flush=True)


if __name__ == "__main__":
    main()
