"""Context variables that log records carry. A request or a run sets them where it begins."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""ID of the current HTTP request; empty outside a request. A run inherits the ID of the request that started it."""

session_id: ContextVar[str] = ContextVar("session_id", default="")
"""ID of the current session; empty outside a session."""

principal_name: ContextVar[str] = ContextVar("principal_name", default="")
"""Name of the principal of the current request; empty outside a request and where there is no login."""
