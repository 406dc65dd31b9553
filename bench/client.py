"""A client so lean that what is measured is the server: one blocking socket, HTTP/1.1 with keep-alive."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

_PIECE = 1 << 20
_END = b"\r\n0\r\n\r\n"


class BadAnswer(Exception):
    """The server answered something that the benchmark cannot go on with."""


class Connection:
    """One keep-alive connection to `url`. One request at a time; a context manager."""

    def __init__(self, url: str, *, token: str = "", seconds: float = 120) -> None:
        """`seconds`: how long a read may take."""
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 80), timeout=seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._common = f"Host: {address.netloc}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._buffer = bytearray(_PIECE)
        self._read = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, path: str, body: object = None) -> None:
        """Send a request; its answer is read with `until` and `rest`."""
        content = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._common}{kind}Content-Length: {len(content)}\r\n\r\n"
        self._read.clear()
        self._socket.sendall(head.encode() + content)

    def until(self, mark: bytes) -> None:
        """Read until `mark` has come, from the head of the answer on."""
        while mark not in self._read:
            if self._read.endswith(_END):
                raise BadAnswer(f"no {mark!r} in the answer: {bytes(self._read[:500])!r}")
            self._more()

    def rest(self) -> bytes:
        """Read the answer to its end: the whole, head and chunk sizes included.

        Raises:
            BadAnswer: the status is not 200.
        """
        self.until(b"\r\n\r\n")
        start = self._read.index(b"\r\n\r\n") + 4
        head = bytes(self._read[:start]).lower()
        if b"transfer-encoding: chunked" in head:
            while not self._read.endswith(_END):
                self._more()
        else:
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            while len(self._read) < start + size:
                self._more()
        if not head.startswith(b"http/1.1 200"):
            raise BadAnswer(bytes(self._read[:500]).decode(errors="replace"))
        return bytes(self._read)

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """A request and its whole answer, as `rest`."""
        self.send(method, path, body)
        return self.rest()

    def json(self, method: str, path: str, body: object = None) -> Any:
        """The JSON body of an answer that has a length."""
        return json.loads(self.ask(method, path, body).split(b"\r\n\r\n", 1)[1])

    def new_session(self) -> str:
        """A fresh session of the service."""
        return self.json("PUT", "/api/v1/sessions")["data"]["session_id"]

    def _more(self) -> None:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise BadAnswer(f"the server closed the connection: {bytes(self._read[:500])!r}")
        self._read += memoryview(self._buffer)[:count]
