"""Context variables that log records carry. A request or a run sets them where it begins."""

from contextvars import ContextVar

from app.domain.external.telemetry import NO_SPAN, Span

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""ID of the current HTTP request; empty outside a request. A run inherits the ID of the request that started it."""

session_id: ContextVar[str] = ContextVar("session_id", default="")
"""ID of the current session; empty outside a session."""

owner: ContextVar[str] = ContextVar("owner", default="")
"""Owner of the session of the current run; empty outside a run."""

principal_name: ContextVar[str] = ContextVar("principal_name", default="")
"""Name of the principal of the current request; empty outside a request and where there is no login."""

client_address: ContextVar[str] = ContextVar("client_address", default="")
"""Address of the TCP connection of the current request, which may be a proxy's; empty outside a request."""


span: ContextVar[Span] = ContextVar("span", default=NO_SPAN)
"""The traced operation that the current code is a part of."""


def current_owner() -> str:
    """Return the owner of the sessions that the current task works for: that of its run, or of its request."""
    return owner.get() or principal_name.get()
