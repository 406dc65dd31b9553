"""Endpoint 14: tickets, for requests of browsers that cannot send a header."""

from fastapi import Request
from pydantic import Field, StrictBool, StrictStr
from starlette.responses import Response

from app.interfaces.api.dependencies import Owner, RequestBody, RequestServices, get_session_id, read_body
from app.interfaces.api.openapi import answers, api_router, body
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.envelope import success

router = api_router("sessions", "/api/v1/tickets")


class TicketBody(RequestBody):
    """The session and the rights of a new ticket."""

    session_id: StrictStr = Field(description="The session that it opens.")
    view_only: StrictBool | None = Field(
        None, description="On a desktop that it opens, keyboard, pointer and clipboard of the viewer are dropped."
    )


class IssuedTicket(Schema):
    """A new ticket: for one request, within 30 seconds."""

    ticket: str = Field(description="Goes into the query of the request that it opens, as `?ticket=`.")
    expires_at: int = Field(description="Whole seconds since the epoch, UTC.")


class TicketAnswer(SuccessAnswer):
    """The envelope that contains `IssuedTicket`."""

    data: IssuedTicket


@router.post("", responses=answers(TicketAnswer, 400, 404, 413, 429, 503), openapi_extra=body(TicketBody))
async def issue_ticket(request: Request, services: RequestServices, owner: Owner) -> Response:
    """Issue a ticket for one of your sessions: as `?ticket=` it opens its events or its desktop, once, for 30 seconds.

    The request that it opens uses it up, even if that request then fails. A malformed request, or one for another
    session, does not. A session can have at most 100 unused tickets at a time.
    """
    wanted = await read_body(request, TicketBody)
    session_id = await get_session_id(wanted.session_id)
    issued = await services.tickets.issue(session_id, owner=owner, view_only=bool(wanted.view_only))
    response = success({"ticket": issued.ticket, "expires_at": int(issued.expires_at)})
    response.headers["Cache-Control"] = "no-store"
    return response
