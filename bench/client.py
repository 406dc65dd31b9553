"""A minimal HTTP/1.1 client on a blocking socket, so that the measured time is the server's."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

_BUFFER_BYTES = 1 << 20
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class UnexpectedResponse(Exception):
    """The server sent a response with which the benchmark cannot continue."""


class Connection:
    """A context manager for one keep-alive connection to `url`, with one request at a time."""

    def __init__(self, url: str, *, token: str = "", seconds: float = 120) -> None:
        """Connect. `seconds` is the timeout of each read."""
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 80), timeout=seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._common = f"Host: {address.netloc}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._buffer = bytearray(_BUFFER_BYTES)
        self._read = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, path: str, body: object = None) -> None:
        """Send a request. Read its response with `read_until` and `read_response`."""
        content = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._common}{kind}Content-Length: {len(content)}\r\n\r\n"
        self._read.clear()
        self._socket.sendall(head.encode() + content)

    def read_until(self, marker: bytes) -> None:
        """Read from the start of the response until `marker` has arrived."""
        while marker not in self._read:
            if self._read.endswith(_LAST_CHUNK):
                raise UnexpectedResponse(f"no {marker!r} in the response: {bytes(self._read[:500])!r}")
            self._receive()

    def read_response(self) -> bytes:
        """Read to the end and return the whole response, headers and chunk sizes included.

        Raises:
            UnexpectedResponse: The status is not 200.
        """
        self.read_until(b"\r\n\r\n")
        start = self._read.index(b"\r\n\r\n") + 4
        head = bytes(self._read[:start]).lower()
        if b"transfer-encoding: chunked" in head:
            while not self._read.endswith(_LAST_CHUNK):
                self._receive()
        else:
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            while len(self._read) < start + size:
                self._receive()
        if not head.startswith(b"http/1.1 200"):
            raise UnexpectedResponse(bytes(self._read[:500]).decode(errors="replace"))
        return bytes(self._read)

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """Send a request and return its response, as `read_response` does."""
        self.send(method, path, body)
        return self.read_response()

    def json(self, method: str, path: str, body: object = None) -> Any:
        """Send a request and return the JSON body of the response, which must have a Content-Length."""
        return json.loads(self.request(method, path, body).split(b"\r\n\r\n", 1)[1])

    def new_session(self) -> str:
        """Create a session and return its id."""
        return self.json("PUT", "/api/v1/sessions")["data"]["session_id"]

    def _receive(self) -> None:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise UnexpectedResponse(f"the server closed the connection: {bytes(self._read[:500])!r}")
        self._read += memoryview(self._buffer)[:count]
