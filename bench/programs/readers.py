"""Many readers of one stream, as lean as can be: they count frames and parse nothing.

    python -m bench.programs.readers URL READERS FRAMES

Connects them all, asks, prints `ready` when each has its first frame (the comment that opens a stream), and once each
has FRAMES more `{"asked": …, "first": …, "last": …}`: monotonic seconds of the first request, and of the arrival of the
first of these frames and of the last.
"""

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_END = b"\n\n"
_SECONDS = 120


@dataclass(slots=True, eq=False)
class Reader:
    """One connection. `half`: a newline was read that may be the first of two."""

    socket: socket.socket
    frames: int = 0
    half: bool = False

    def count(self, buffer: bytearray, size: int) -> None:
        """Count the ends of frames in what was read; one may be cut in two."""
        joined = self.half and buffer[0] == 10
        self.frames += joined + buffer.count(_END, int(joined), size)
        self.half = buffer[size - 1] == 10 and not (buffer[size - 2 : size] == _END if size > 1 else joined)


class Readers:
    """All of them, on one selector."""

    def __init__(self, url: str, number: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._buffer = bytearray(1 << 18)
        self._readers: list[Reader] = []
        self.first: float | None = None
        """When the first event came: what is more than the comment that opens the stream."""
        address = urlsplit(url)
        request = f"GET {address.path}?{address.query} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
        for _ in range(number):
            connection = socket.create_connection((address.hostname or "", address.port or 80))
            self._readers.append(Reader(connection))
            self._selector.register(connection, selectors.EVENT_READ, self._readers[-1])
        self.asked = time.monotonic()
        for reader in self._readers:
            reader.socket.sendall(request)

    def read(self, frames: int) -> None:
        """Read until every reader has `frames`."""
        missing = sum(reader.frames < frames for reader in self._readers)
        while missing:
            ready = self._selector.select(_SECONDS)
            if not ready:
                sys.exit("nothing comes any more")
            for key, _ in ready:
                reader: Reader = key.data
                before = reader.frames
                self._receive(reader)
                missing -= before < frames <= reader.frames

    def _receive(self, reader: Reader) -> None:
        size = reader.socket.recv_into(self._buffer)
        if not size:
            sys.exit(f"the stream ended after {reader.frames} frames")
        reader.count(self._buffer, size)
        if self.first is None and reader.frames > 1:
            self.first = time.monotonic()


def main() -> None:
    """Read, and say when."""
    url, number, frames = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    readers = Readers(url, number)
    readers.read(1)
    print("ready", flush=True)
    readers.read(frames + 1)
    print(json.dumps({"asked": readers.asked, "first": readers.first, "last": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
