"""Administrators: list and stop the sessions of everybody."""

from typing import Annotated

from fastapi import Depends, Query, Request
from pydantic import Field, StrictStr
from starlette.responses import Response

from app.application.services.sessions import MAX_PAGE
from app.domain.models.event import SessionStatus
from app.domain.models.session import Session
from app.interfaces.api.dependencies import RequestBody, RequestServices, SessionId, read_body, require_admin
from app.interfaces.api.openapi import answers, api_router, body
from app.interfaces.api.schemas import EmptyAnswer, Schema, SuccessAnswer, UsageData
from app.interfaces.api.services import Services
from app.interfaces.envelope import success
from app.interfaces.wire import usage_object

DEFAULT_PAGE = 100
"""Number of sessions on a page, unless the request asks for another one."""

router = api_router("admin", "/api/v1/admin")

Admin = Annotated[None, Depends(require_admin)]
"""Refuses everybody else with 403. It comes first, so that it hides which sessions exist."""


class OwnerBody(RequestBody):
    """The new owner of sessions."""

    owner: StrictStr = Field(description="Name of a principal.")


class AnySession(Schema):
    """A session of anybody, without a word of its conversation."""

    session_id: str
    owner: str = Field(description="Name of the owner; empty for a session from a time without a login.")
    status: SessionStatus
    created_at: int = Field(description="Whole seconds since the epoch, UTC.")
    latest_message_at: int | None = Field(description="Whole seconds since the epoch, UTC.")
    model: str = Field(description="Name of the model that its runs use.")
    usage: UsageData


class AnySessions(Schema):
    """A page of the sessions of everybody, the newest first."""

    sessions: list[AnySession]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class AnySessionsAnswer(SuccessAnswer):
    """The envelope that contains `AnySessions`."""

    data: AnySessions


class SessionCount(Schema):
    """Number of sessions that were changed."""

    count: int


class SessionCountAnswer(SuccessAnswer):
    """The envelope that contains `SessionCount`."""

    data: SessionCount


@router.get("/sessions", responses=answers(AnySessionsAnswer, 400, 403, 503))
async def list_all_sessions(
    _admin: Admin,
    services: RequestServices,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Maximum number of sessions.")] = DEFAULT_PAGE,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page.")] = None,
) -> Response:
    """Return a page of the sessions of everybody, the newest first, without titles and messages."""
    page = await services.admin.page(limit=limit, cursor=cursor or None)
    rows = [_row(session, services) for session in page.sessions]
    return success({"sessions": rows, "next_cursor": page.next_cursor})


@router.post(
    "/sessions/assign", responses=answers(SessionCountAnswer, 400, 403, 413, 503), openapi_extra=body(OwnerBody)
)
async def assign_unowned_sessions(_admin: Admin, request: Request, services: RequestServices) -> Response:
    """Give all sessions without an owner, which were created before there was a login, to somebody."""
    wanted = await read_body(request, OwnerBody)
    return success({"count": await services.admin.assign_unowned(wanted.owner)})


@router.post("/sessions/{session_id}/stop", responses=answers(EmptyAnswer, 403, 404, 503))
async def stop_any_session(_admin: Admin, services: RequestServices, session_id: SessionId) -> Response:
    """Stop the run of anybody's session. `done` is written before the response. Without a run, change nothing."""
    await services.admin.stop(session_id)
    return success(None)


@router.post("/stop", responses=answers(SessionCountAnswer, 403, 503))
async def stop_all_sessions(_admin: Admin, services: RequestServices) -> Response:
    """Stop every run that is going, and return how many there were. Sessions can be continued with a message."""
    return success({"count": await services.admin.stop_all()})


def _row(session: Session, services: Services) -> dict[str, object]:
    return {
        "session_id": session.id,
        "owner": session.owner,
        "status": services.view.status(session.status),
        "created_at": session.created_at,
        "latest_message_at": session.latest_message_at,
        "model": services.models.name_of(session.model),
        "usage": usage_object(session.usage),
    }
