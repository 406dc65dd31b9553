"""Endpoint 14: tickets, for what a browser opens without being able to send a header."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.interfaces.api.document import answers, body, operation_id
from app.interfaces.api.params import Owner, Use, known_shape, read_body
from app.interfaces.api.schemas.answers import TicketAnswer
from app.interfaces.api.schemas.requests import TicketBody
from app.interfaces.envelope import success

router = APIRouter(
    prefix="/api/v1/tickets",
    tags=["sessions"],
    default_response_class=Response,
    generate_unique_id_function=operation_id,
)


@router.post("", responses=answers(TicketAnswer, 400, 404, 413, 429, 503), openapi_extra=body(TicketBody))
async def issue_ticket(request: Request, services: Use, owner: Owner) -> Response:
    """A ticket for one of your sessions: within 30 seconds it opens its events or its desktop, once, as `?ticket=`.

    It is used up by the request that it lets in, whatever then becomes of that; not by one that is malformed, or is for
    another session. Of one session at most 100 wait to be used at a time."""
    wanted = await read_body(request, TicketBody)
    session_id = await known_shape(wanted.session_id)
    issued = await services.tickets.issue(session_id, owner=owner, view_only=bool(wanted.view_only))
    answer = success({"ticket": issued.ticket, "expires_at": int(issued.expires_at)})
    answer.headers["Cache-Control"] = "no-store"
    return answer
