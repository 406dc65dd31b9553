"""The two gates before the routes, as plain ASGI: who may ask, and how much may be sent."""

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox.envelope import refusal

MIB = 1024 * 1024


class Token:
    """The sandbox's token, and who has it."""

    def __init__(self, token: str) -> None:
        self._expected = f"bearer {token}".encode("latin-1")

    def opens(self, authorization: str) -> bool:
        """Whether this Authorization header carries it."""
        scheme, _, token = authorization.partition(" ")
        given = f"{scheme.lower()} {token.strip()}".encode("latin-1", "replace")
        return hmac.compare_digest(given, self._expected)


class BearerAuth:
    """Lets through only requests with `Authorization: Bearer <token>`; others get 401."""

    def __init__(self, app: ASGIApp, *, token: Token) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan" or self._token.opens(Headers(scope=scope).get("authorization", "")):
            await self._app(scope, receive, send)
        else:
            await not_allowed()(scope, receive, send)


def not_allowed() -> Response:
    """The answer to who has no token."""
    return refusal(401, "no or wrong token", {"WWW-Authenticate": "Bearer"})


class BodyLimit:
    """Ends a request whose body is longer than allowed with 413, by its declared and by its real length."""

    def __init__(self, app: ASGIApp, *, default: int, by_path: dict[str, int]) -> None:
        self._app = app
        self._default = default
        self._by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._default)
        message = f"the body is larger than {limit // MIB} MiB"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await refusal(413, message, {"Connection": "close"})(scope, receive, send)
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
