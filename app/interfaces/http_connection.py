"""An HTTP connection whose client can neither fill the memory with headers nor keep the connection without progress.

uvicorn limits only the idle time between two requests. See docs/decisions/0031-hostile-clients.md.
"""

import asyncio
import ctypes
import logging
import sys
from http import HTTPStatus
from typing import cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.interfaces.bounded_transport import BoundedTransport
from app.interfaces.envelope import raw_failure

log = logging.getLogger(__name__)

MAX_HEAD = 64 * 1024
"""Maximum size of a request's address and headers, of its trailers, and of anything else that is no body, in bytes."""

HEAD_SECONDS = 30.0
"""Maximum time from a connection or the first byte of a request to the end of its headers, in seconds."""

BODY_SECONDS = 60.0
"""Maximum time in which a client may send nothing of a body that it has announced, in seconds."""

MIN_BODY_RATE = 500
"""Bytes of a body that a client must send per second, on average, after `BODY_SECONDS`."""

DISCARD_SECONDS = 10.0
"""Maximum time to read and discard what a client sends after its request was refused, in seconds.

Most clients send their whole request before they read the response, and see a broken connection otherwise.
"""

TICKS = 50
"""Number of ticks between two looks at the connections; a server ticks ten times a second."""

MIN_CONNECTIONS = 32
"""Number of connections below which the memory they used is not worth the work."""

_HEAD_TOO_LARGE = f"the request's address and headers are larger than {MAX_HEAD} bytes"
_NOT_HTTP = "this is not a valid HTTP request"
_TOO_SLOW = "the request did not arrive in time"


class _Refused(Exception):
    """Ends the parsing of a request."""


class HttpConnection(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits for the size of a head, and for the time without progress."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request; see `asyncio.Protocol`."""
        # uvloop's transport is no subclass of `asyncio.Transport`.
        self._bounded = BoundedTransport(cast("asyncio.Transport", transport))
        self._bounded.limit_buffers()
        self._timer: asyncio.TimerHandle | None = None
        self._received = self._refused = False
        self._head_size = self._bytes_without_body = 0
        self._body_size = 0
        self._body_started = self._last_progress = 0.0
        super().connection_made(self._bounded)
        self._set_timer(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything; see `asyncio.Protocol`."""
        self._cancel_timer()
        self._bounded.connection_lost(exc)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client does not read; see `asyncio.Protocol`."""
        super().pause_writing()
        self._bounded.begin_stall()

    def resume_writing(self) -> None:
        """Note that the client reads again; see `asyncio.Protocol`."""
        super().resume_writing()
        self._bounded.end_stall()

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request, or discard it if the request was refused."""
        if self._refused:
            return
        self._received = True
        if self._timer is None:
            self._set_timer(HEAD_SECONDS)
        self._bytes_without_body += len(data)
        super().data_received(data)
        if self._bytes_without_body > MAX_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Begin a request; the parser calls this, as all methods below."""
        super().on_message_begin()
        self._head_size, self._body_started = 0, 0.0

    def on_url(self, url: bytes) -> None:
        """Take a part of the request's address."""
        self._add_to_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Drop a trailer: counted as a header, it could name the user in place of a proxy."""
        self._add_to_head(len(name) + len(value) + len(b": \r\n"))
        if not self._body_started:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to handle the request, and to wait for its body."""
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.parser and self.parser.get_http_version() == "1.1"):
            raise _Refused  # other servers on the way may take the request for one to another host
        super().on_headers_complete()
        self._bytes_without_body = self._body_size = 0
        self._body_started = self._last_progress = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._bytes_without_body = 0
        self._body_size += len(body)
        self._last_progress = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._cancel_timer()
        self._bytes_without_body = 0
        self._body_started = 0.0
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the WebSocket protocol, which has limits of its own."""
        self._cancel_timer()
        self.transport = self._bounded.unwrap()
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """Close the connection because the server shuts down; uvicorn's server calls this."""
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that cannot be parsed; uvicorn calls this."""
        if self._head_size > MAX_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _HEAD_TOO_LARGE)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, _NOT_HTTP)

    def _add_to_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MAX_HEAD:
            raise _Refused

    def _set_timer(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._check_progress)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        """Refuse a request whose head is late, or whose body stands still or arrives too slowly."""
        left = 0.0
        now = self.loop.time()
        if self.flow.read_paused:  # the service does not read: the client cannot be blamed
            self._body_started, self._body_size = now, 0
            left = BODY_SECONDS
        elif self._body_started:
            latest = self._body_started + BODY_SECONDS + self._body_size / MIN_BODY_RATE
            left = min(self._last_progress + BODY_SECONDS, latest) - now
        if left > 0:
            self._set_timer(left)
        elif not self._received:
            self.transport.close()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, _TOO_SLOW)

    def _refuse(self, status: HTTPStatus, msg: str) -> None:
        """Respond with a failure, unless a response has started; discard what follows, and close the connection."""
        if self._refused or self.transport.is_closing():
            return
        log.info("request refused", extra={"status": status.value, "reason": msg})
        self._refused = True
        self._cancel_timer()
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        self.transport.write(raw_failure(status, msg))
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(DISCARD_SECONDS, self.transport.close)


class TrimmingServer(uvicorn.Server):
    """A uvicorn server that returns free memory to the system when half of its connections have closed.

    The C library otherwise keeps what was freed between objects that live on: 500 readers would leave 50 MB.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._peak = 0

    async def on_tick(self, counter: int) -> bool:
        """Look at the number of connections; uvicorn calls this."""
        count = len(self.server_state.connections)
        self._peak = max(self._peak, count)
        if counter % TICKS == 0 and self._peak >= MIN_CONNECTIONS and count <= self._peak // 2:
            self._peak = count
            await asyncio.to_thread(release_free_memory)
        return await super().on_tick(counter)


def release_free_memory() -> None:
    """Return free memory of the C library to the system. Does nothing where that library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
