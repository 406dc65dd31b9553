"""The outermost middleware: a request's id, its one line in the log, and the headers that every answer has."""

import logging
import re
import time
from secrets import token_hex

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.application.context import request_id
from app.interfaces.metrics import Metrics

log = logging.getLogger(__name__)

_PLAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """Pure ASGI. Streams are logged when they end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Bind the request's id, pass the request on, and log how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _request_id(scope)
        headers = [(b"x-request-id", name.encode()), (b"x-content-type-options", b"nosniff")]
        status = 0

        async def adding(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        method, began = scope["method"], time.perf_counter()
        token = request_id.set(name)
        try:
            await self._app(scope, receive, adding)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            milliseconds = round((time.perf_counter() - began) * 1000, 1)
            fields = {"method": method, "route": route, "status": status, "ms": milliseconds}
            self._metrics.request(method, route, status, milliseconds)
            log.info("request", extra=fields)
            request_id.reset(token)


def _request_id(scope: Scope) -> str:
    """The client's own id when it is short and plain, so that it cannot forge log lines; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PLAIN.fullmatch(value):
            return value.decode()
    return token_hex(8)
