"""What routes read from a request: the caller, the session, the last event, and the body."""

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import HTTPConnection

from app.application.context import session_id as session_context
from app.domain.errors import Forbidden, InvalidInput, NotFound, Unauthorized
from app.domain.models.principal import Principal
from app.interfaces.api.services import Services, services_of
from app.interfaces.authentication import LOGIN_KEY, PRINCIPAL_KEY, Login
from app.interfaces.errors import explain
from app.interfaces.wire import event_number

_SESSION_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_ISSUED_ID = re.compile(r"[0-9a-f]{32}")


class RequestBody(BaseModel):
    """Base class of request bodies. Unknown fields are ignored, so that newer clients can use older servers."""

    model_config = ConfigDict(frozen=True)


M = TypeVar("M", bound=RequestBody)


async def get_principal(connection: HTTPConnection) -> Principal:
    """Return the principal on whose behalf a request is made.

    Raises:
        Unauthorized: It has none, because it only has a ticket, which this route does not take.
    """
    principal: Principal | None = connection.scope.get(PRINCIPAL_KEY)
    if principal is None:
        raise Unauthorized("a login is needed here; a ticket or a signature does not open this")
    return principal


async def get_owner(connection: HTTPConnection) -> str:
    """Return the name of the request's principal, who owns what the request creates."""
    return (await get_principal(connection)).name


async def require_admin(connection: HTTPConnection) -> None:
    """Refuse everybody but administrators.

    Raises:
        Forbidden: The principal is none.
    """
    if not (await get_principal(connection)).is_admin:
        raise Forbidden("only an administrator may do this; see AUTH_ADMINS")


def login_of(connection: HTTPConnection) -> Login:
    """Return the login of a request."""
    return connection.scope[LOGIN_KEY]


async def admit(connection: HTTPConnection, owner: str) -> None:
    """Make `owner` the principal of a request with a ticket or a signed address.

    Raises:
        Unauthorized: The owner may not log in any more.
        LimitReached: The owner sends too many requests.
    """
    await login_of(connection).admit(owner)
    await services_of(connection).rates.check_request(owner)


async def get_session_id(session_id: Annotated[str, Path(description="The session's id.")]) -> str:
    """Return the session id of the path, and bind it for the log.

    Raises:
        NotFound: No session can have such an id. The store is not asked.
    """
    if not _SESSION_ID.fullmatch(session_id):
        raise NotFound("no such session")
    if _ISSUED_ID.fullmatch(session_id):  # what a client made up, which may be a secret, is not logged
        session_context.set(session_id)
    return session_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner who opens a session, with or without a ticket, and whether the ticket only lets them watch."""

    owner: str
    view_only: bool = False


async def get_caller(connection: HTTPConnection, session_id: str, ticket: str | None) -> Caller:
    """Return who opens the session, and use up their ticket.

    Call it last, once the request is known to be valid, as a ticket can be used only once. A ticket that is given must
    be valid, even where none is needed.

    Raises:
        Unauthorized: The ticket does not open this session, or does not any more.
    """
    if ticket is None:
        return Caller(owner=await get_owner(connection))
    with login_of(connection).reporting():
        redeemed = await services_of(connection).tickets.redeem(ticket, session_id=session_id)
        await admit(connection, redeemed.owner)
    return Caller(owner=redeemed.owner, view_only=redeemed.view_only)


def parse_event_id(event_id: str | None) -> int | None:
    """Return the number of the event that a client names as its last one, or None if it names none.

    Raises:
        InvalidInput: It is not an event id.
    """
    return event_number(event_id) if event_id else None


async def read_body(request: Request, model: type[M]) -> M:
    """Return the request's JSON body as `model`, whatever its content type. An empty body counts as `{}`.

    Raises:
        InvalidInput: The body is not JSON, or does not fit the model.
        TooLarge: The body exceeds the limit of `BodyLimitMiddleware`.
    """
    body = await request.body()
    try:
        return model.model_validate_json(body if body.strip() else b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidInput(explain(dict(problem) for problem in problems)) from None


# `async`, because FastAPI runs plain functions in a thread.
async def _get_services(request: Request) -> Services:
    return services_of(request)


RequestServices = Annotated[Services, Depends(_get_services)]


async def get_stream_holder(services: RequestServices) -> AsyncGenerator[Callable[[str], None], None]:
    """Yield a function that counts the request as an open stream of an owner, until its response has ended.

    Call it before the request changes anything: it raises `LimitReached`.
    """
    with ExitStack() as stack:
        yield lambda owner: stack.enter_context(services.limits.stream(owner))


HoldStream = Annotated[Callable[[str], None], Depends(get_stream_holder)]
Owner = Annotated[str, Depends(get_owner)]
SessionId = Annotated[str, Depends(get_session_id)]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The last event that the client has, as with `event_id`.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Two requests of a session with the same key are one message.",
    ),
]
TicketQuery = Annotated[
    str | None,
    Query(alias="ticket", description="From `POST /tickets`; for browsers, which cannot send a header here."),
]
AfterQuery = Annotated[str | None, Query(description="An `event_id`: return only what came after this event.")]
