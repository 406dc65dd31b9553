"""The innermost middleware: bounded bodies, HEAD, and the last resort for what nobody foresaw."""

import asyncio
import logging
from http import HTTPStatus

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.errors import TooLarge, Unavailable
from app.interfaces.envelope import failure
from app.interfaces.errors import INTERNAL, answer_to

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
"""Bytes of a request's body."""

DRAIN_BYTES = 16 * MAX_BODY
DRAIN_SECONDS = 10.0
"""How much of a body that is too large is read and thrown away, and for how long. Most clients look at no answer
before they have sent everything, and would see a broken connection instead of the 413."""

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
        body = _Body(receive, self._max_body)
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            if not started and body.abandoned:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            started = True
            await send(message)

        # The routes need to know GET only. A copy, as the server looks at its own scope to leave the body out.
        inner = {**scope, "method": "GET", HEAD_KEY: True} if scope["method"] == "HEAD" else scope
        try:
            if _declared(scope) > self._max_body:
                await answer_to(await body.refuse())(scope, receive, noting)
            else:
                await self._app(inner, body.receive, noting)
        except ClientDisconnect:
            log.debug("the client left before its request was read")
        except asyncio.CancelledError:
            if started:
                raise
            # Only the server cancels a request: it ends now, and would answer by itself, in its own words.
            await answer_to(Unavailable("the service is ending; ask again", retry_after=1))(scope, receive, noting)
        except Exception:  # the root of a request
            log.exception("request failed in an unforeseen way")
            if not started:
                await failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL)(scope, receive, send)
            # Once the answer has begun, returning without its end makes the server cut the connection: the client
            # sees that something is missing.
        finally:
            scope["route"] = inner.get("route")  # for the log


class _Body:
    """A request's body, read up to a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._more = True
        self.abandoned = False
        """The client was still sending when it was refused."""

    async def receive(self) -> Message:
        """The next message of the server.

        Raises:
            TooLarge: the body is; what is left of it was thrown away.
        """
        message = await self._receive()
        self._size += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._size > self._limit:
            raise await self.refuse()
        return message

    async def refuse(self) -> TooLarge:
        """Read on for a while, then say what is wrong."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._more and self._size < DRAIN_BYTES:
                    message = await self._receive()
                    self._size += len(message.get("body", b""))
                    self._more = message.get("more_body", False)
        except TimeoutError:
            pass
        self.abandoned = self._more
        return TooLarge(f"the body is larger than {self._limit} bytes")


def _declared(scope: Scope) -> int:
    """The length that the request says its body has; 0 when it says none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:18])
    return 0
