"""Endpoint 9: a session's desktop for a VNC viewer, over a WebSocket."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import assert_never

from fastapi import APIRouter, WebSocket
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from app.application.services.desktop import Viewer, ViewingEnd
from app.domain.errors import AnkerError, Forbidden, InvalidInput, TooLarge
from app.interfaces.api.document import Document, failures_of, operation_id
from app.interfaces.api.params import TicketOf, known_shape, visitor_of
from app.interfaces.api.services import services_of
from app.interfaces.denial import POLICY_VIOLATION, deny
from app.interfaces.envelope import failure
from app.interfaces.errors import status_of
from app.interfaces.view_only import OnlyWatching

log = logging.getLogger(__name__)

SUBPROTOCOL = "binary"

CLOSE_SECONDS = 2.0
"""How long a viewer may take to read what comes before the close; less than a server that ends waits for it."""

MAX_REASON = 123
"""Bytes of UTF-8; the protocol allows no more."""

NORMAL, GOING_AWAY, UNSUPPORTED, TOO_BIG, INTERNAL = 1000, 1001, 1003, 1009, 1011
PRIVATE = 4000
"""What is told by an HTTP status elsewhere is told by 4000 plus that status here."""
GONE = PRIVATE + HTTPStatus.GONE

_PATH = "/api/v1/sessions/{session_id}/vnc"
_MISTAKEN = "this is a WebSocket, for a VNC viewer: connect with ws:// and the subprotocol `binary`"

_RESPONSES: dict[int | str, Document] = {
    101: {"description": "A WebSocket: the bytes of the RFB (VNC) protocol, both ways."},
    **failures_of((426,)),
}

router = APIRouter(tags=["sandbox"], default_response_class=Response, generate_unique_id_function=operation_id)


@router.get(_PATH, status_code=426, response_description="Not asked for as a WebSocket.", responses=_RESPONSES)
async def watch_desktop(session_id: str, ticket: TicketOf = None) -> Response:
    """The session's desktop as a WebSocket: binary frames, subprotocol `binary` (or none), as noVNC speaks it.

    A sandbox is started first when the session has none; the viewer waits meanwhile. The connection is accepted in any
    case, as a browser tells a page nothing about one that is not, and then closed with a code and a reason to show:
    1000 the desktop ended the connection, 1001 or 1012 the service is shutting down, 1003 only binary frames are
    understood, 1008 a viewer that may only watch says something unknown, 1009 a message is too large, 1011 the viewer
    does not answer, or a fault of ours, 4401 the ticket opens nothing (any more), 4404 no such session, 4410 the
    session was deleted or the sandbox is gone, 4502 the sandbox refused, 4503 no sandbox or desktop can be had now. An
    unknown subprotocol (400) and pages of other origins (403) are refused at once.

    With a ticket that was made with `view_only` the viewer only watches: what it types, points at or copies is dropped.
    It must then speak RFB 3.7 or 3.8. What is copied on the desktop is still shown to it.
    """
    return failure(
        HTTPStatus.UPGRADE_REQUIRED, _MISTAKEN, headers={"Upgrade": "websocket", "Connection": "Upgrade, close"}
    )


@router.websocket(_PATH)
async def view(websocket: WebSocket, session_id: str) -> None:
    """See `watch_desktop`, which says it to those who read the document."""
    offered: Sequence[str] = websocket.scope.get("subprotocols") or ()
    if offered and SUBPROTOCOL not in offered:
        # Served without one of them, a browser would give up by itself, and say nothing about why.
        refusal = failure(HTTPStatus.BAD_REQUEST, f"the only subprotocol here is `{SUBPROTOCOL}`")
        await deny(refusal, websocket.scope, websocket.receive, websocket.send)
        return
    await websocket.accept(SUBPROTOCOL if offered else None)
    began = time.monotonic()
    code, reason = await _watch(websocket, session_id)
    fields = {"code": code, "reason": reason, "seconds": round(time.monotonic() - began, 1)}
    log.info("a viewer of the desktop ended", extra=fields)
    if code:
        await _close(websocket, code, reason)


@router.websocket("/{path:path}")
async def nothing(websocket: WebSocket, path: str) -> None:
    """Any other path: answered as over HTTP."""
    refusal = failure(HTTPStatus.NOT_FOUND, "there is nothing at this path; see /docs")
    await deny(refusal, websocket.scope, websocket.receive, websocket.send)


class _SocketViewer:
    """A `Viewer` at the other end of a WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self) -> bytes | None:
        """See `Viewer.receive`."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        if data is None:
            raise InvalidInput("only binary frames are understood")
        return data

    async def send(self, data: bytes) -> bool:
        """See `Viewer.send`."""
        try:
            await self._websocket.send_bytes(data)
        except WebSocketDisconnect:
            return False
        return True


async def _watch(websocket: WebSocket, session_id: str) -> tuple[int, str]:
    """Serve the viewer; answers the code and the reason to close with, or 0 when it has left."""
    try:
        await known_shape(session_id)
        visitor = await visitor_of(websocket, session_id, websocket.query_params.get("ticket"))
        viewer: Viewer = _SocketViewer(websocket)
        if visitor.view_only:
            viewer = OnlyWatching(viewer)
        ending = await services_of(websocket).desktop.watch(session_id, viewer, owner=visitor.owner)
    except AnkerError as error:
        return _code_of(error), str(error)
    except Exception:  # the root of a socket
        log.exception("a viewer was served in an unforeseen way")
        return INTERNAL, "internal error; the log has the details"
    return _code_at(ending), ending.value


def _code_at(ending: ViewingEnd) -> int:
    match ending:
        case ViewingEnd.LEFT:
            return 0
        case ViewingEnd.ENDED:
            return NORMAL
        case ViewingEnd.STOPPING:
            return GOING_AWAY
        case ViewingEnd.GONE | ViewingEnd.DELETED:
            return GONE
        case _:
            assert_never(ending)


def _code_of(error: AnkerError) -> int:
    match error:
        case InvalidInput():
            return UNSUPPORTED
        case TooLarge():
            return TOO_BIG
        case Forbidden():
            return POLICY_VIOLATION
        case _:
            status = status_of(error)
            return INTERNAL if status == HTTPStatus.INTERNAL_SERVER_ERROR else PRIVATE + status


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    """Tell the viewer; the server cuts the connection of one that does not read."""
    with suppress(WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await websocket.close(code, _shortened(reason))


def _shortened(reason: str) -> str:
    """As much of `reason` as a close frame takes."""
    encoded = reason.encode()
    if len(encoded) <= MAX_REASON:
        return reason
    return encoded[: MAX_REASON - 3].decode("utf-8", "ignore") + "…"
