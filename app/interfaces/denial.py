"""Refusing a request, also one for a WebSocket, which is then none."""

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

POLICY_VIOLATION = 1008


async def deny(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with `response`. A server that cannot do that for a WebSocket answers a bare 403."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
