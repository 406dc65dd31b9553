"""What stands in front of the routes: a filter of connections, authentication, and limits on body size."""

import asyncio
import errno
import hmac
import socket

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandbox.web import error_response

MIB = 1024 * 1024


class OutsideProtocol(HttpToolsProtocol):
    """Closes connections from this machine at once: the agent's commands could open as many as the program may have."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Implement `asyncio.Protocol`: the connection is open."""
        super().connection_made(transport)
        peer: tuple[str, int] | None = transport.get_extra_info("peername")
        if peer is None or _is_own_address(peer[0]):  # None: it is closed already
            transport.abort()


def _is_own_address(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


class Token:
    """The token of the sandbox."""

    def __init__(self, token: str) -> None:
        self._expected = f"bearer {token}".encode("latin-1")

    def matches(self, authorization: str) -> bool:
        """Return whether an `Authorization` header carries the token."""
        scheme, _, token = authorization.partition(" ")
        given = f"{scheme.lower()} {token.strip()}".encode("latin-1", "replace")
        return hmac.compare_digest(given, self._expected)


class BearerAuthMiddleware:
    """Rejects requests without `Authorization: Bearer <token>` with 401."""

    def __init__(self, app: ASGIApp, *, token: Token) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan" or self._token.matches(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
        else:
            await unauthorized()(scope, receive, send)


def unauthorized() -> Response:
    """Return the response to a request without the token."""
    return error_response(401, "no or wrong token", {"WWW-Authenticate": "Bearer"})


class BodyLimitMiddleware:
    """Rejects a request with 413 if its declared or actual body is too large."""

    def __init__(self, app: ASGIApp, *, default: int, by_path: dict[str, int]) -> None:
        self._app = app
        self._default = default
        self._by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._default)
        message = f"the body is larger than {limit // MIB} MiB"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await error_response(413, message, {"Connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            event = await receive()
            seen += len(event.get("body", b""))
            if seen > limit:
                raise HTTPException(413, message)
            return event

        await self._app(scope, bounded, send)
