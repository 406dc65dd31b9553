"""ASGI middleware: logging of requests, limits of request bodies, and protection against pages of other origins."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection
from http import HTTPMethod, HTTPStatus
from ipaddress import ip_address
from secrets import token_hex
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.application.context import client_address, request_id
from app.application.context import span as current_span
from app.domain.errors import TooLarge, Unavailable
from app.domain.external.telemetry import NO_SPAN, Span, Tracer
from app.interfaces.envelope import PRIVATE, failure, refuse
from app.interfaces.errors import INTERNAL, error_response
from app.interfaces.metrics import Metrics

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
"""Maximum size of a request body, in bytes."""

DRAIN_BYTES = 16 * MAX_BODY
"""Maximum size of a request body that is read and discarded after it was refused, in bytes.

Most clients send their whole request before they read the response. Without the draining they would see a broken
connection instead of the 413.
"""

DRAIN_SECONDS = 10.0
"""Maximum time to read and discard a refused request body, in seconds."""

HEAD_KEY = "anker.head"
"""Key of the scope that marks a GET which the client sent as HEAD."""

UNTRACED = frozenset(("/health", "/ready", "/metrics"))
"""Paths that are asked for all the time, without being part of anything."""

INTERNAL_CLOSE = 1011
"""Close code of a WebSocket after an internal error."""

_METHODS = frozenset(HTTPMethod)
_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_PLAIN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s:/?#@\[\]\\]+))(?::[0-9]*)?")
"""A `Host` header: an IPv6 address in brackets or a name, and a port or none."""


class RequestLogMiddleware:
    """Outermost: log each request, and add the headers that every response has.

    A stream is logged when it ends. With a tracer, each request is a span too, and so is each WebSocket.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Callable[[], Tracer]) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Bind the request's id, pass the request on, then log and count it."""
        client_address.set((scope.get("client") or ("",))[0])
        if scope["type"] != "http":
            pass_on = self._pass_websocket if scope["type"] == "websocket" else self._app
            await pass_on(scope, receive, send)
            return
        name = _request_id(scope)
        headers = [(b"x-request-id", name.encode()), (b"x-content-type-options", b"nosniff")]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
                _guard_page(message["headers"])
            await send(message)

        # A client can make up any method: as a label, each would be a time series, with whatever its name tells.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        started = time.perf_counter()
        token = request_id.set(name)
        span = self._start_span(scope)
        span_token = current_span.set(span)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            self._metrics.count_request(method, route, status, milliseconds)
            log.info("request", extra={"method": method, "route": route, "status": status, "ms": milliseconds})
            _end_span(span, method, route, status)
            current_span.reset(span_token)
            request_id.reset(token)

    async def _pass_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a WebSocket on. Its span lasts from the handshake to the close."""
        codes = {"status": 0, "close": 0}

        async def watching_send(message: Message) -> None:
            if message["type"] == "websocket.accept":
                codes["status"] = int(HTTPStatus.SWITCHING_PROTOCOLS)
            elif message["type"] == "websocket.http.response.start":
                codes["status"] = message["status"]
            elif message["type"] == "websocket.close":
                codes["close"] = message["code"]
            await send(message)

        span = self._start_span(scope)
        token = current_span.set(span)
        try:
            await self._app(scope, receive, watching_send)
        finally:
            if code := codes["close"]:
                span.set({"anker.websocket.close_code": code})
            error = str(code) if code == INTERNAL_CLOSE or code >= PRIVATE + HTTPStatus.INTERNAL_SERVER_ERROR else ""
            _end_span(span, HTTPMethod.GET, getattr(scope.get("route"), "path", "-"), codes["status"], error)
            current_span.reset(token)

    def _start_span(self, scope: Scope) -> Span:
        """Start the span of a request. The path is left out, because it may hold secrets; the route is known later."""
        if scope["path"] in UNTRACED:
            return NO_SPAN
        method = scope.get("method", "GET")  # a WebSocket has none
        method = method if method in _METHODS else "_OTHER"
        parents = [value for name, value in scope["headers"] if name == b"traceparent"]
        is_valid = len(parents) == 1 and _TRACEPARENT.fullmatch(parents[0])
        return self._tracer().start(
            method,
            "server",
            {"http.request.method": method, "url.scheme": scope["scheme"]},
            parent=parents[0].decode() if is_valid else "",
        )


def _end_span(span: Span, method: str, route: str, status: int, error: str = "") -> None:
    """End the span of a request. A status of 0 means that the client left before there was a response."""
    if route != "-":
        span.rename(f"{method} {route}")
        span.set({"http.route": route})
    if status:
        span.set({"http.response.status_code": status})
    span.end(str(status) if status >= HTTPStatus.INTERNAL_SERVER_ERROR else error)


def _guard_page(headers: list[tuple[bytes, bytes]]) -> None:
    """Forbid other pages to frame an HTML page. A page that sets no policy of its own may load nothing."""
    names = {name.lower(): value for name, value in headers}
    if names.get(b"content-type", b"").startswith(b"text/html"):
        headers.append((b"x-frame-options", b"DENY"))
        if b"content-security-policy" not in names:
            headers.append((b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))


def _request_id(scope: Scope) -> str:
    """Return the client's id if it is short and plain, so that it cannot forge log lines; otherwise a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PLAIN_ID.fullmatch(value):
            return value.decode()
    return token_hex(8)


class FailureMiddleware:
    """Second outermost: report what no other part handled with an envelope, for HTTP requests and WebSockets.

    Once the response has started, the server closes the connection, so that the client sees that it is incomplete.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; log and report what fails."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = False

        async def tracking_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, tracking_send)
        except Exception:  # the root of a request
            log.exception("request failed unexpectedly")
            if not started:
                await refuse(failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL), scope, receive, send)


class BodyLimitMiddleware:
    """Innermost: limit request bodies, turn HEAD into GET, and respond to requests that the server cancels."""

    def __init__(self, app: ASGIApp, *, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, within the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _LimitedBody(receive, self._max_body)
        started = False

        async def tracking_send(message: Message) -> None:
            nonlocal started
            if not started and body.abandoned:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            started = True
            await send(message)

        # Routes only handle GET. The scope is copied, because the server reads its own one to leave out the body.
        inner = {**scope, "method": "GET", HEAD_KEY: True} if scope["method"] == "HEAD" else scope
        try:
            if declared_length(Headers(scope=scope)) > self._max_body:
                await error_response(await body.drain())(scope, receive, tracking_send)
            else:
                await self._app(inner, body.receive, tracking_send)
        except ClientDisconnect:
            log.debug("the client disconnected before its request was read")
        except asyncio.CancelledError:
            if started:
                raise
            # Only the server cancels requests, when it shuts down. Its own response would have no envelope.
            error = Unavailable("the service is ending; ask again", retry_after=1)
            await error_response(error)(scope, receive, tracking_send)
        finally:
            scope["route"] = inner.get("route")  # for RequestLogMiddleware


class _LimitedBody:
    """A request body that is read up to a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._more = True
        self.abandoned = False
        """Whether the client was still sending when draining ended."""

    async def receive(self) -> Message:
        """Return the server's next message.

        Raises:
            TooLarge: The body exceeds the limit. The rest of it was discarded.
        """
        message = await self._read()
        if self._size > self._limit:
            raise await self.drain()
        return message

    async def drain(self) -> TooLarge:
        """Read and discard the body for a while, then return the error to report."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._more and self._size < DRAIN_BYTES:
                    await self._read()
        except TimeoutError:
            pass
        self.abandoned = self._more
        return TooLarge(f"the body is larger than {self._limit} bytes")

    async def _read(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message


def declared_length(headers: Headers) -> int:
    """Return the Content-Length, or 0 without one."""
    length = headers.get("content-length", "")
    return int(length[:18]) if length.isdecimal() else 0


class OriginMiddleware:
    """Refuse pages of other origins and foreign host names, with 403; see docs/decisions/0006-origins.md.

    Without a login, any web page that the operator has open could otherwise run commands here. While the service
    listens on loopback only, every request for a host name that others can make resolve to it (DNS rebinding) is
    refused too. WebSockets are treated alike, because a browser opens them to any origin.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str], loopback_only: bool) -> None:
        """Create the middleware.

        Args:
            app: The application that it protects.
            allowed: Origins, such as `https://app.example`, whose pages may use the service.
            loopback_only: Whether the service listens on loopback only.
        """
        self._app = app
        self._allowed = frozenset(origin.rstrip("/") for origin in allowed)
        self._allowed_hosts = frozenset(urlsplit(origin).hostname for origin in allowed)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            problem = self._problem(Headers(scope=scope))
            if problem is not None:
                await refuse(failure(403, problem), scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> str | None:
        # Either header may be there several times; other parts of the service may read any of them.
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if self._loopback_only and not all(map(self._is_known_host, hosts)):
            return "this host name is not served here; name its origin in ALLOWED_ORIGINS"
        if all(origin in self._allowed or _is_own(origin, hosts) for origin in origins):
            return None
        return (
            "pages of this origin may not use the service: name the origin in ALLOWED_ORIGINS, or let the proxy forward"
            " the Host header with its port"
        )

    def _is_known_host(self, host: str) -> bool:
        parsed = _HOST.fullmatch(host)
        if parsed is None:
            return False
        name = parsed["address"] or parsed["name"].lower()
        return name == "localhost" or name in self._allowed_hosts or _is_address(name)


def _is_own(origin: str, hosts: Collection[str]) -> bool:
    """Return whether `origin` is that of a page which the service serves itself."""
    scheme, _, own = origin.lower().partition("://")
    return scheme in ("http", "https") and {host.lower() for host in hosts} == {own}


def _is_address(name: str) -> bool:
    """Return whether `name` is an IP address. Nobody can make an address resolve to another one."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
