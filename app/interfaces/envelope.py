"""The envelope around every JSON response: `{"code", "msg", "data"}`."""

from collections.abc import Mapping
from http import HTTPStatus

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

JSON = "application/json"

OPENING = b'{"code":0,"msg":"success","data":'
"""Start of a successful response; its data and `CLOSING` follow."""

CLOSING = b"}"

POLICY_VIOLATION = 1008
"""WebSocket close code for a client that is not allowed to do what it does."""


UNLIMITED_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Paths of the operator's own tools, which go on working while an owner is over a limit."""

PRIVATE = 4000
"""Failures that have an HTTP status elsewhere close a WebSocket with 4000 plus that status."""


def success(data: object) -> Response:
    """Return a successful response with `data`, which orjson must be able to encode."""
    return success_json(orjson.dumps(data))


def success_json(data: bytes) -> Response:
    """Return a successful response with `data`, which is encoded JSON."""
    return Response(OPENING + data + CLOSING, media_type=JSON)


def failure(status: int, msg: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """Return a failed response: `code` is the HTTP status and `data` is null."""
    body = orjson.dumps({"code": status, "msg": msg, "data": None})
    return Response(body, status_code=status, headers=headers, media_type=JSON)


def raw_failure(status: HTTPStatus, msg: str) -> bytes:
    """Return a failed response as a server sends it that closes the connection after it."""
    response = failure(status, msg, headers={"connection": "close", "x-content-type-options": "nosniff"})
    lines = [b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode())]
    lines += [b"%b: %b" % header for header in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse an HTTP request, or the handshake of a WebSocket, with `response`.

    A server without the extension `websocket.http.response` refuses a WebSocket with a bare 403 instead.
    """
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
