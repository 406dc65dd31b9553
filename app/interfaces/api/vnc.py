"""Endpoint 9: a session's desktop for a VNC viewer, over a WebSocket."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from http import HTTPStatus
from typing import Annotated

from fastapi import Query, Request, WebSocket
from pydantic import Field, StrictBool, StrictInt
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from app.application.services.desktop import Viewer, ViewingEnd
from app.domain.errors import AnkerError, Forbidden, InvalidInput, LimitReached, TooLarge
from app.interfaces.api.dependencies import (
    Caller,
    Owner,
    RequestBody,
    RequestServices,
    SessionId,
    TicketQuery,
    admit,
    get_caller,
    get_session_id,
    login_of,
    read_body,
)
from app.interfaces.api.openapi import Document, answers, api_router, body, failures_of
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.api.services import services_of
from app.interfaces.envelope import POLICY_VIOLATION, PRIVATE, failure, refuse, success
from app.interfaces.errors import NOTHING_HERE, status_of
from app.interfaces.limits import refuse_over_limit
from app.interfaces.view_only import ViewOnlyViewer

log = logging.getLogger(__name__)

SUBPROTOCOL = "binary"

CLOSE_SECONDS = 2.0
"""Maximum time that a viewer may take to read what precedes the close, in seconds.

It is shorter than the time that a server which shuts down waits for it.
"""

MAX_REASON = 123
"""Maximum length of a close reason, in bytes of UTF-8; the protocol allows no more."""

NORMAL, GOING_AWAY, UNSUPPORTED, TOO_BIG, INTERNAL = 1000, 1001, 1003, 1009, 1011

GONE = PRIVATE + HTTPStatus.GONE

CLOSE_CODES: Mapping[ViewingEnd, int | None] = {
    ViewingEnd.LEFT: None,
    ViewingEnd.ENDED: NORMAL,
    ViewingEnd.STOPPING: GOING_AWAY,
    ViewingEnd.GONE: GONE,
    ViewingEnd.DELETED: GONE,
}
"""Close code for each reason why watching ended; None if the viewer has left already."""

ERROR_CODES: Mapping[type[AnkerError], int] = {
    InvalidInput: UNSUPPORTED,
    TooLarge: TOO_BIG,
    Forbidden: POLICY_VIOLATION,
}
"""Close code for errors that have a standard one; for others see `PRIVATE`."""

_PATH = "/api/v1/sessions/{session_id}/vnc"
_NOT_A_WEBSOCKET = "this is a WebSocket, for a VNC viewer: connect with ws:// and the subprotocol `binary`"

DEFAULT_MINUTES = 15
"""Minutes for which a signed address is valid, unless the request asks for another time."""

MAX_MINUTES = 120
"""Maximum number of minutes for which a signed address is valid."""

SignatureQuery = Annotated[
    str | None, Query(alias="signature", description="From `POST …/vnc/signed-url`, instead of a ticket.")
]


class SignedUrlBody(RequestBody):
    """The rights of a signed address. The body may be absent, and so may every field."""

    expire_minutes: Annotated[StrictInt, Field(ge=1, le=MAX_MINUTES)] | None = Field(
        None, description=f"Minutes for which it is valid; {DEFAULT_MINUTES} when absent."
    )
    view_only: StrictBool | None = Field(
        None, description="Keyboard, pointer and clipboard of viewers that it opens are dropped."
    )


class SignedAddress(Schema):
    """An address that is a credential itself."""

    signed_url: str = Field(description="A path under the origin of the API, for ws:// or wss://.")
    expires_in: int = Field(description="Seconds for which it is valid.")


class SignedAddressAnswer(SuccessAnswer):
    """The envelope that contains `SignedAddress`."""

    data: SignedAddress


_RESPONSES: dict[int | str, Document] = {
    101: {"description": "A WebSocket: the bytes of the RFB (VNC) protocol, both ways."},
    **failures_of((426,)),
}

router = api_router("sandbox")


@router.get(_PATH, status_code=426, response_description="Not asked for as a WebSocket.", responses=_RESPONSES)
async def watch_desktop(session_id: str, ticket: TicketQuery = None, signature: SignatureQuery = None) -> Response:
    """Open the session's desktop as a WebSocket: binary frames, subprotocol `binary` (or none), as noVNC speaks it.

    If the session has no sandbox, one is started while the viewer waits. The connection is always accepted, as a
    browser tells a page nothing about one that is not, and then closed with a code and a reason to show: 1000 the
    desktop ended the connection, 1001 or 1012 the service is shutting down, 1003 only binary frames are understood,
    1008 a viewer that may only watch sent something unknown, 1009 a message is too large, 1011 the viewer does not
    answer, or an internal error, 4401 the ticket or the signature opens nothing (any more), or the login has ended,
    4404 no such session, 4410 the session was deleted or the sandbox is gone, 4502 the sandbox refused, 4503 no sandbox
    or desktop is available now. An unknown subprotocol (400), pages of other origins (403) and requests with neither a
    login nor a ticket or signature (401) are refused at once, and so are too many viewers (429).

    With a ticket or a signed address that was made with `view_only`, the viewer only watches: its keyboard, pointer and
    clipboard are dropped. It must speak RFB 3.7 or 3.8. It still receives what is copied on the desktop.
    """
    return failure(
        HTTPStatus.UPGRADE_REQUIRED, _NOT_A_WEBSOCKET, headers={"Upgrade": "websocket", "Connection": "Upgrade, close"}
    )


@router.post(
    f"{_PATH}/signed-url", responses=answers(SignedAddressAnswer, 400, 404, 413, 503), openapi_extra=body(SignedUrlBody)
)
async def sign_desktop_address(
    request: Request, services: RequestServices, owner: Owner, session_id: SessionId
) -> Response:
    """Return an address that opens the session's desktop without a header, any number of times until it expires.

    It also opens it for others: treat it as a password.
    """
    wanted = await read_body(request, SignedUrlBody)
    seconds = 60 * (DEFAULT_MINUTES if wanted.expire_minutes is None else wanted.expire_minutes)
    signature = await services.links.sign(session_id, owner=owner, seconds=seconds, view_only=bool(wanted.view_only))
    address = f"{_PATH.format(session_id=session_id)}?signature={signature}"
    response = success({"signed_url": address, "expires_in": seconds})
    response.headers["Cache-Control"] = "no-store"
    return response


@router.websocket(_PATH)
async def view(websocket: WebSocket, session_id: str) -> None:
    """Serve a viewer; see `watch_desktop`, which documents this for clients."""
    offered: Sequence[str] = websocket.scope.get("subprotocols") or ()
    if offered and SUBPROTOCOL not in offered:
        # A browser would close a connection without one of its subprotocols, and not say why.
        refusal = failure(HTTPStatus.BAD_REQUEST, f"the only subprotocol here is `{SUBPROTOCOL}`")
        await refuse(refusal, websocket.scope, websocket.receive, websocket.send)
        return
    started = time.monotonic()
    services = services_of(websocket)
    with ExitStack() as stack:
        caller: Caller | AnkerError
        try:
            await get_session_id(session_id)
            caller = await _caller(websocket, session_id)
            stack.enter_context(services.limits.stream(caller.owner))
        except LimitReached as error:
            await refuse_over_limit(error, services, websocket.scope, websocket.receive, websocket.send)
            return
        except AnkerError as error:
            caller = error
        await websocket.accept(SUBPROTOCOL if offered else None)
        code, reason = await _watch(websocket, session_id, caller)
    seconds = round(time.monotonic() - started, 1)
    log.info("a viewer of the desktop ended", extra={"code": code or 0, "reason": reason, "seconds": seconds})
    if code is not None:
        await _close(websocket, code, reason)


@router.websocket("/{path:path}")
async def refuse_other_paths(websocket: WebSocket, path: str) -> None:
    """Refuse a WebSocket to any other path as HTTP does, with 404."""
    refusal = failure(HTTPStatus.NOT_FOUND, NOTHING_HERE)
    await refuse(refusal, websocket.scope, websocket.receive, websocket.send)


class _SocketViewer:
    """A `Viewer` at the other end of a WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self) -> bytes | None:
        """Implement `Viewer.receive`."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        if data is None:
            raise InvalidInput("only binary frames are understood")
        return data

    async def send(self, data: bytes) -> bool:
        """Implement `Viewer.send`."""
        try:
            await self._websocket.send_bytes(data)
        except WebSocketDisconnect:
            return False
        return True


async def _watch(websocket: WebSocket, session_id: str, caller: Caller | AnkerError) -> tuple[int | None, str]:
    """Serve the viewer, unless it may not watch. Return the code and the reason to close with.

    There is no code if the viewer has left.
    """
    try:
        if isinstance(caller, AnkerError):
            raise caller
        viewer: Viewer = _SocketViewer(websocket)
        if caller.view_only:
            viewer = ViewOnlyViewer(viewer)
        ending = await services_of(websocket).desktop.watch(
            session_id, viewer, owner=caller.owner, view_only=caller.view_only
        )
    except AnkerError as error:
        return _error_code(error), services_of(websocket).mask.mask(str(error))
    except Exception:  # the root of a socket
        log.exception("a viewer failed unexpectedly")
        return INTERNAL, "internal error; the log has the details"
    return CLOSE_CODES[ending], ending.value


async def _caller(websocket: WebSocket, session_id: str) -> Caller:
    signature = websocket.query_params.get("signature")
    if signature is None:
        return await get_caller(websocket, session_id, websocket.query_params.get("ticket"))
    with login_of(websocket).reporting():
        holder = services_of(websocket).links.check(signature, session_id=session_id)
        await admit(websocket, holder.owner)
    return Caller(owner=holder.owner, view_only=holder.view_only)


def _error_code(error: AnkerError) -> int:
    for kind, code in ERROR_CODES.items():
        if isinstance(error, kind):
            return code
    status = status_of(error)
    return INTERNAL if status == HTTPStatus.INTERNAL_SERVER_ERROR else PRIVATE + status


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    """Close the WebSocket. The server cuts the connection of a viewer that does not read."""
    with suppress(WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await websocket.close(code, _shorten(reason))


def _shorten(reason: str) -> str:
    """Return as much of `reason` as fits into a close frame."""
    encoded = reason.encode()
    if len(encoded) <= MAX_REASON:
        return reason
    return encoded[: MAX_REASON - 3].decode("utf-8", "ignore") + "…"
