"""ASGI middleware that limits requests and unread responses of each owner, and failed logins of client addresses."""

from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.errors import LimitReached
from app.domain.models.principal import Principal
from app.interfaces.api.services import Services, services_of
from app.interfaces.authentication import OPEN_PATH, PRINCIPAL_KEY, is_opened_by_query
from app.interfaces.envelope import PRIVATE, UNLIMITED_PATHS, refuse
from app.interfaces.errors import error_response
from app.interfaces.middleware import declared_length

PART = 64 * 1024
"""Maximum size of a part of a response that the server keeps besides the response, in bytes."""

MAX_UNREAD = 32 * 2**20
"""Maximum size of an owner's responses of more than a part that have not been read, in bytes."""


class RequestLimitMiddleware:
    """Limit the requests and the uploaded bytes of each owner. Authentication must come before it.

    Who makes a request with a ticket is known only once its route has checked that, and counts it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 429."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in UNLIMITED_PATHS:
            await self._app(scope, receive, send)
            return
        principal: Principal | None = scope.get(PRINCIPAL_KEY)
        if principal is None:
            await self._app(scope, receive, send)
            return
        services = services_of(HTTPConnection(scope))
        headers = Headers(scope=scope)
        if principal.name:
            services.rates.remember_accepted(_credential(scope))
        try:
            await services.rates.check_request(principal.name)
            await services.rates.check_upload(principal.name, declared_length(headers))
        except LimitReached as error:
            await refuse_over_limit(error, services, scope, receive, send)
            return
        if "transfer-encoding" in headers:
            receive = _counted(receive, services, principal.name)
        await self._app(scope, receive, send)


class ResponseLimitMiddleware:
    """Send responses in parts, as their clients read them, and limit what the clients of an owner leave unread.

    The server would copy a whole response. Streams, which have no declared length, keep little and are not counted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._unread: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. Replace its response by 429 if the owner has too many unread ones."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        owner, size, is_refused = "", 0, False

        async def send_in_parts(message: Message) -> None:
            nonlocal owner, size, is_refused
            if is_refused:
                return
            if message["type"] != "http.response.start":
                for part in _parts(message):
                    await send(part)
                return
            length = declared_length(Headers(raw=message.get("headers", [])))
            if length > PART:
                owner = scope[PRINCIPAL_KEY].name if PRINCIPAL_KEY in scope else ""
                if self._unread[owner] and self._unread[owner] + length > MAX_UNREAD:
                    is_refused = True
                    error = _too_much_unread()
                    services_of(HTTPConnection(scope)).metrics.count_refusal(error.limit)
                    response = error_response(error)
                    response.headers["Connection"] = "close"  # this client may read nothing either
                    await response(scope, receive, send)
                    return
                size = length
                self._unread[owner] += size
            await send(message)

        try:
            await self._app(scope, receive, send_in_parts)
        finally:
            self._unread[owner] -= size
            if not self._unread[owner]:
                del self._unread[owner]


class LoginLimitMiddleware:
    """Limit the failed logins of each client address: responses of 401. It must come before authentication.

    A request without a credential guesses nothing. It does not count, or a page that a proxy serves to people who are
    not logged in would block that proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it with 429."""
        if scope["type"] not in ("http", "websocket") or scope["path"] == OPEN_PATH:
            await self._app(scope, receive, send)
            return
        credential = _credential(scope)
        if not credential:
            await self._app(scope, receive, send)
            return
        services = services_of(HTTPConnection(scope))
        address = scope["client"][0] if scope.get("client") else ""
        refused: LimitReached | None = None

        async def send_unless_blocked(message: Message) -> None:
            nonlocal refused
            if refused is not None:
                return  # This is the rest of the replaced response.
            if _is_login_failure(message):
                try:
                    await services.rates.count_failure(address)
                except LimitReached as error:
                    if message["type"] != "websocket.close":
                        refused = error
                        await refuse_over_limit(error, services, scope, receive, send)
                        return
            await send(message)

        try:
            services.rates.check_address(address, credential)
        except LimitReached as error:
            await refuse_over_limit(error, services, scope, receive, send)
            return
        await self._app(scope, receive, send_unless_blocked)


async def refuse_over_limit(
    error: LimitReached, services: Services, scope: Scope, receive: Receive, send: Send
) -> None:
    """Refuse a request or the handshake of a WebSocket with 429, and count the refusal."""
    services.metrics.count_refusal(error.limit)
    await refuse(error_response(error), scope, receive, send)


def _parts(message: Message) -> Iterator[Message]:
    """Split a part of a response's body, unless it is smaller than two parts, as the chunks of streams are."""
    body = memoryview(message.get("body", b""))
    if len(body) < 2 * PART:
        yield message
        return
    for start in range(0, len(body), PART):
        is_last = start + PART >= len(body)
        more = message.get("more_body", False) or not is_last
        yield {"type": message["type"], "body": body[start : start + PART], "more_body": more}


def _too_much_unread() -> LimitReached:
    return LimitReached(
        f"more than {MAX_UNREAD} bytes of responses wait for you: read them, or close their connections", limit="unread"
    )


def _counted(receive: Receive, services: Services, owner: str) -> Receive:
    """Return a `receive` that counts the parts of a body whose length is not declared."""

    async def receive_and_count() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            await services.rates.check_upload(owner, len(message.get("body", b"")))
        return message

    return receive_and_count


def _is_login_failure(message: Message) -> bool:
    status = message.get("code") if message["type"] == "websocket.close" else message.get("status")
    return status in (HTTPStatus.UNAUTHORIZED, PRIVATE + HTTPStatus.UNAUTHORIZED)


def _credential(scope: Scope) -> bytes:
    """Return what the request is admitted by: a query with a ticket or a signature, or the `Authorization` header."""
    if is_opened_by_query(scope):
        return scope["query_string"]
    return next((value for name, value in scope["headers"] if name == b"authorization"), b"")
