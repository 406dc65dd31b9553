"""What the work at hand belongs to. Bound where a request or a run begins; whatever is logged below carries it."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the HTTP request, empty outside one. A run inherits that of the request which started it."""

session_id: ContextVar[str] = ContextVar("session_id", default="")
"""The session that is being worked on, empty when there is none."""
