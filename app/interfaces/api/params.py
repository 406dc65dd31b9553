"""What routes read from a request, checked once: whose it is, which session, from where on, and its body."""

import re
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection

from app.application.context import session_id as session_context
from app.domain.errors import InvalidInput, NotFound
from app.interfaces.api.services import Services, services_of
from app.interfaces.errors import explain
from app.interfaces.wire import event_number

_SESSION_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")

M = TypeVar("M", bound=BaseModel)


async def owner_of(_connection: HTTPConnection) -> str:
    """On whose behalf a request, or a WebSocket, is made. Until there is a login everybody has the same, empty name."""
    return ""


async def known_shape(session_id: Annotated[str, Path(description="The session's id.")]) -> str:
    """The session id of the path, bound for the log.

    Raises:
        NotFound: no session can have such an id; no store is asked.
    """
    if not _SESSION_ID.fullmatch(session_id):
        raise NotFound("no such session")
    session_context.set(session_id)
    return session_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who opens a session with a request that may bring a ticket in place of a header."""

    owner: str
    view_only: bool = False


async def visitor_of(connection: HTTPConnection, session_id: str, ticket: str | None) -> Visitor:
    """Who asks for the session. A ticket is used up here: when nothing can be wrong with the request any more that
    could be told without asking the store. One that is given must be good, also where none is needed.

    Raises:
        Unauthorized: the ticket does not open this session (any more).
    """
    if ticket is None:
        return Visitor(owner=await owner_of(connection))
    redeemed = await services_of(connection).tickets.redeem(ticket, session_id=session_id)
    return Visitor(owner=redeemed.owner, view_only=redeemed.view_only)


def position(event_id: str | None) -> int | None:
    """The number of the event that a client names as its last; None when it names none.

    Raises:
        InvalidInput: it is no event id.
    """
    return event_number(event_id) if event_id else None


async def read_body(request: Request, model: type[M]) -> M:
    """The request's body as `model`, whatever content type it claims to have. No body at all counts as `{}`.

    Raises:
        InvalidInput: it is not JSON, or does not fit.
        TooLarge: see `Guard`.
    """
    body = await request.body()
    try:
        return model.model_validate_json(body if body.strip() else b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidInput(explain(dict(problem) for problem in problems)) from None


# `async` so that FastAPI calls it on the event loop; a plain function would go to a thread.
async def _services(request: Request) -> Services:
    return services_of(request)


Use = Annotated[Services, Depends(_services)]
Owner = Annotated[str, Depends(owner_of)]
SessionId = Annotated[str, Depends(known_shape)]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The last event that the client has; counts as `event_id`.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key twice in a session is one message.",
    ),
]
TicketOf = Annotated[
    str | None,
    Query(alias="ticket", description="From `POST /tickets`; for browsers, which can send no header with this."),
]
After = Annotated[str | None, Query(description="An `event_id`: only what came after this event.")]
