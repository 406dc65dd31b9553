"""Many readers of one stream that count frames and parse nothing.

    python -m bench.programs.readers URL READERS FRAMES

Connects every reader and sends the requests. Prints `ready` once each reader has its first frame, which is the comment
that opens a stream. Once each has FRAMES more, prints `{"asked": …, "first": …, "last": …}`: the monotonic times of the
first request and of the arrival of the first and of the last of these frames.
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
    """One connection. `half` says that the last byte read may be the first of two newlines."""

    socket: socket.socket
    frames: int = 0
    half: bool = False

    def count(self, buffer: bytearray, size: int) -> None:
        """Count the ends of frames in the first `size` bytes of `buffer`; an end may be split over two reads."""
        joined = self.half and buffer[0] == 10
        self.frames += joined + buffer.count(_END, int(joined), size)
        self.half = buffer[size - 1] == 10 and not (buffer[size - 2 : size] == _END if size > 1 else joined)


class Readers:
    """Every reader, on one selector."""

    def __init__(self, url: str, number: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._buffer = bytearray(1 << 18)
        self._readers: list[Reader] = []
        self.first: float | None = None
        """Monotonic time at which the first event arrived."""
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
        """Read until every reader has `frames` frames."""
        missing = sum(reader.frames < frames for reader in self._readers)
        while missing:
            ready = self._selector.select(_SECONDS)
            if not ready:
                sys.exit(f"nothing arrived within {_SECONDS} s")
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
    """Read the streams and print the times."""
    url, number, frames = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    readers = Readers(url, number)
    readers.read(1)
    print("ready", flush=True)
    readers.read(frames + 1)
    print(json.dumps({"asked": readers.asked, "first": readers.first, "last": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
