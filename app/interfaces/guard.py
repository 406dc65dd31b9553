"""The innermost middleware: bounded bodies, HEAD, and the last resort for what nobody foresaw."""

import logging
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.errors import TooLarge
from app.interfaces.envelope import failure
from app.interfaces.errors import INTERNAL, answer_to

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
"""Bytes of a request's body."""

HEAD_KEY = "anker.head"
"""Set in the scope of a GET that the client sent as HEAD."""


class Guard:
    """Pure ASGI. Stands inside the middleware that logs, so that what it logs carries the request's id."""

    def __init__(self, app: ASGIApp, *, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, come what may."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        # The routes need to know GET only. A copy, as the server looks at its own scope to leave the body out.
        inner = {**scope, "method": "GET", HEAD_KEY: True} if scope["method"] == "HEAD" else scope
        try:
            await self._bounded(inner, receive, noting)
        except ClientDisconnect:
            log.debug("the client left before its request was read")
        except Exception:  # the root of a request
            log.exception("request failed in an unforeseen way")
            if not started:
                await failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL)(scope, receive, send)
            # Once the answer has begun, returning without its end makes the server cut the connection: the client
            # sees that something is missing.
        finally:
            scope["route"] = inner.get("route")  # for the log

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = TooLarge(f"the body is larger than {self._max_body} bytes")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > self._max_body):
                await answer_to(refusal)(scope, receive, send)
                return
        size = 0

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise refusal
            return message

        await self._app(scope, counting, send)
