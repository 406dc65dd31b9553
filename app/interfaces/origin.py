"""Who may call from a browser.

There may be no login, and the service can run commands: a web page that the operator happens to have open must not be
able to use it. A page of another origin is refused, unless it is allowed; and while the service listens on loopback
only, so is a browser that comes by a name which was made to point there (DNS rebinding). Programs are not concerned.
WebSockets are treated alike: no browser asks a service for permission before it opens one.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.interfaces.denial import deny
from app.interfaces.envelope import failure


class OriginGuard:
    """ASGI middleware that answers 403 to browsers that come from elsewhere."""

    def __init__(self, app: ASGIApp, *, allowed: Collection[str], loopback_only: bool) -> None:
        """`allowed`: origins such as `https://app.example`. `loopback_only`: the service listens on loopback."""
        self._app = app
        self._allowed = frozenset(origin.rstrip("/") for origin in allowed)
        self._allowed_hosts = frozenset(urlsplit(origin).hostname for origin in allowed)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] in ("http", "websocket"):
            problem = self._problem(Headers(scope=scope))
            if problem is not None:
                await deny(failure(403, problem), scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback_only and _is_browser(headers) and not self._known(host):
            return "this host name is not served here; name its origin in ALLOWED_ORIGINS"
        if origin is None or origin in self._allowed or urlsplit(origin).netloc == host:
            return None
        return "pages of this origin may not use the service; name the origin in ALLOWED_ORIGINS"

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name is None or name == "localhost" or name in self._allowed_hosts or _is_address(name)


def _is_browser(headers: Headers) -> bool:
    """Browsers name themselves so, or send `Origin`; a page cannot make them hide both."""
    return "origin" in headers or headers.get("user-agent", "").startswith("Mozilla/")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
