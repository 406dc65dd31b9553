"""ASGI middleware: find out who makes each request, and refuse those who may not."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, suppress

from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.application.context import principal_name
from app.domain.errors import AnkerError, Unauthorized, Unavailable
from app.domain.external.authenticator import Authenticator, Credentials
from app.domain.models.principal import Principal
from app.interfaces.envelope import refuse
from app.interfaces.errors import error_response

log = logging.getLogger(__name__)

PRINCIPAL_KEY = "anker.principal"
"""Key of the scope under which the principal of a request is stored."""

LOGIN_KEY = "anker.login"
"""Key of the scope under which the `Login` of a request is stored."""

OPEN_PATH = "/health"
"""The one path that needs no login."""

RECHECK_SECONDS = 30.0
"""Seconds between two checks of the login of an open stream or WebSocket."""

MAX_TICKET_STREAM_SECONDS = 8 * 3600.0
"""Maximum age of a stream that a ticket or a signed address of somebody opened, in seconds.

Whether its owner may still log in, only an issuer or a proxy knows, which see no more of it.
"""

LOGIN_ENDED = 4401
"""WebSocket close code for a login that ended meanwhile; also used for tickets that open nothing."""

CLOSE_SECONDS = 2.0
"""Maximum time that a client may take to read the end of its stream, in seconds."""

MAX_REPORTS = 20
"""Maximum number of refused logins that are logged in `REPORT_SECONDS`; more are only counted."""

REPORT_SECONDS = 10.0
"""Length of a period for `MAX_REPORTS`, in seconds."""

OnRefused = Callable[[str, str], None]
"""Is told of a refused login: the reason, and the address of the client. It must not block."""

_SESSION = r"/api/v1/sessions/[^/]+"
_OPENED_BY_QUERY = (
    ("http", re.compile(f"{_SESSION}/(?:events|export)\n?"), frozenset({"ticket"})),
    ("websocket", re.compile(f"{_SESSION}/vnc\n?"), frozenset({"ticket", "signature"})),
)
"""What a browser opens without a header: type, path, and parameters of which one is the credential.

These routes check it themselves, in `Login.reporting`, and call `Login.admit`. Like in their patterns, a path may end
with a line end.
"""


class Login:
    """The credentials of one request. They are checked again while its stream is open."""

    def __init__(
        self, authenticator: Authenticator, admins: Collection[str], scope: Scope, refusals: "_Refusals"
    ) -> None:
        self._authenticator = authenticator
        self._admins = admins
        self._scope = scope
        self._refusals = refusals
        client = scope.get("client")
        self._credentials = Credentials(headers=scope["headers"], peer=client[0] if client else "")
        self._owner: str | None = None
        self._admitted_at = 0.0

    @contextmanager
    def reporting(self) -> Generator[None, None, None]:
        """Report a refused login if the block, which checks a credential, raises `Unauthorized`."""
        try:
            yield
        except Unauthorized as error:
            self._refusals.report(str(error), self._credentials.peer)
            raise

    async def authenticate(self) -> None:
        """Store the principal whom the headers stand for.

        Raises:
            Unauthorized: They stand for nobody.
            Unavailable: This cannot be checked now.
        """
        name = await self._authenticator.authenticate(self._credentials)
        self._set_principal(Principal(name=name, is_admin=name in self._admins))

    async def admit(self, owner: str) -> None:
        """Store the owner whom a ticket or a signed address stands for. They never make the request an admin's.

        Raises:
            Unauthorized: The owner may not log in any more.
        """
        self._owner, self._admitted_at = owner, time.monotonic()
        if not await self._authenticator.is_known(owner):
            raise Unauthorized("the owner of this ticket or address has no login any more")
        self._set_principal(Principal(name=owner))

    async def has_ended(self) -> bool:
        """Return whether the credentials are invalid by now. If that cannot be checked, they are not."""
        try:
            if self._owner is not None:
                is_old = time.monotonic() - self._admitted_at > MAX_TICKET_STREAM_SECONDS
                return (is_old and bool(self._owner)) or not await self._authenticator.is_known(self._owner)
            await self._authenticator.authenticate(self._credentials)
        except Unauthorized:
            return True
        except Unavailable:
            return False
        return False

    def _set_principal(self, principal: Principal) -> None:
        self._scope[PRINCIPAL_KEY] = principal
        principal_name.set(principal.name)


class AuthenticationMiddleware:
    """Let only those requests pass whose principal is known, all others get 401; see docs/decisions/0033-logins.md.

    A stream or WebSocket whose login ends is closed within `RECHECK_SECONDS`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        admins: Collection[str] = (),
        on_refused: OnRefused = lambda reason, client: None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        """Create the middleware.

        Args:
            app: The application that it protects.
            authenticator: Knows who may log in.
            admins: Names of those who may list and stop everything.
            on_refused: Is told of every refused login.
            recheck_seconds: Seconds between two checks of an open stream.
        """
        self._app = app
        self._authenticator = authenticator
        self._admins = frozenset(admins)
        self._refusals = _Refusals(on_refused)
        self._recheck_seconds = recheck_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] == OPEN_PATH):
            await self._app(scope, receive, send)
            return
        scope[LOGIN_KEY] = login = Login(self._authenticator, self._admins, scope, self._refusals)
        bound = principal_name.set("")
        try:
            if not is_opened_by_query(scope):
                with login.reporting():
                    await login.authenticate()
        except AnkerError as error:
            await refuse(error_response(error), scope, receive, send)
        else:
            await self._serve(login, scope, receive, send)
        finally:
            principal_name.reset(bound)

    async def _serve(self, login: Login, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. If it becomes a stream, end it when the login has ended."""
        watch: asyncio.Task[None] | None = None
        is_complete = False
        deadline = asyncio.timeout(None)

        async def watching_send(message: Message) -> None:
            nonlocal watch, is_complete
            is_complete = is_complete or _is_last(message)
            if watch is None and _begins_stream(message):
                watch = asyncio.create_task(self._end_later(login, deadline))
            await send(message)

        try:
            async with deadline:
                await self._app(scope, receive, watching_send)
        except TimeoutError:
            if not deadline.expired():
                raise
            log.info("stream ended: its login ended")
            if not is_complete:
                await _end(scope, send)
        finally:
            if watch is not None:
                watch.cancel()
                await asyncio.wait([watch])

    async def _end_later(self, login: Login, deadline: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(self._recheck_seconds)
            if await login.has_ended():
                break
        deadline.reschedule(asyncio.get_running_loop().time())


class _Refusals:
    """Reports refused logins, and logs a limited number of them, so that a flood fills no log."""

    def __init__(self, on_refused: OnRefused) -> None:
        self._on_refused = on_refused
        self._since = self._count = 0.0

    def report(self, reason: str, client: str) -> None:
        now = time.monotonic()
        if now - self._since >= REPORT_SECONDS:
            if (more := round(self._count - MAX_REPORTS)) > 0:
                log.warning("more logins were refused", extra={"count": more})
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= MAX_REPORTS:
            log.warning("login refused", extra={"reason": reason, "client": client})
        self._on_refused(reason, client)


def is_opened_by_query(scope: Scope) -> bool:
    """Return whether the request has a ticket or a signature, and its route checks it."""
    if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
        return False
    for kind, path, parameters in _OPENED_BY_QUERY:
        if scope["type"] == kind and path.fullmatch(scope["path"]):
            return not parameters.isdisjoint(QueryParams(scope["query_string"]).keys())
    return False


def _begins_stream(message: Message) -> bool:
    if message["type"] == "http.response.start":
        return all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
    return message["type"] == "websocket.accept"


def _is_last(message: Message) -> bool:
    if message["type"] == "http.response.body":
        return not message.get("more_body", False)
    return message["type"] == "websocket.close"


async def _end(scope: Scope, send: Send) -> None:
    """End a stream so that its client sees a regular end, and learns at its next request that it needs a login."""
    message: Message = {"type": "http.response.body", "body": b"", "more_body": False}
    if scope["type"] == "websocket":
        message = {"type": "websocket.close", "code": LOGIN_ENDED, "reason": "the login has ended"}
    with suppress(OSError):  # the client has left, or does not read
        async with asyncio.timeout(CLOSE_SECONDS):
            await send(message)
