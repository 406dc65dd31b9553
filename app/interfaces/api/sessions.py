"""Sessions: create, return, list, watch, delete and stop them."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Literal, cast

import orjson
from fastapi import Query, Request
from pydantic import Field, StrictBool, StrictStr
from starlette.responses import Response, StreamingResponse

from app.application.services.sessions import MAX_GIVEN_TITLE, MAX_PAGE, History
from app.domain.models.event import EventRecord, SessionStatus
from app.domain.models.session import Session, SessionPage
from app.interfaces.api.dependencies import (
    AfterQuery,
    HoldStream,
    Owner,
    RequestBody,
    RequestServices,
    SessionId,
    parse_event_id,
    read_body,
)
from app.interfaces.api.openapi import answers, api_router, body, streams
from app.interfaces.api.schemas import EmptyAnswer, EventItem, Schema, SuccessAnswer, UsageData
from app.interfaces.api.services import Services
from app.interfaces.envelope import CLOSING, JSON, OPENING, success, success_json
from app.interfaces.sse import EventStream
from app.interfaces.wire import WireView, history_items, usage_object

MAX_EVENTS = 5_000
"""Maximum number of events that one request may ask for."""

DEFAULT_PAGE = 100
"""Number of sessions on a page, unless the request asks for another one."""

_EVENTS_PER_WRITE = 50
"""Number of events that are written at once, about 60 kB. Larger writes cost more, as their memory is not reused."""

_EXAMPLE = """\
: open

event: sessions
data: {"sessions":[],"next_cursor":null}

"""

_MODEL = Field(description="Name of the model that its runs use.")
_PINNED = Field(description="Whether the user pinned it. The order of the list does not depend on it.")
_SHARED = Field(description="Whether others can read it; false, as this version cannot share sessions.")

GivenTitle = Annotated[StrictStr, Field(max_length=MAX_GIVEN_TITLE)]

router = api_router("sessions", "/api/v1/sessions")


class CreateBody(RequestBody):
    """Choices for a new session. The body may be absent, and so may every field."""

    model: StrictStr | None = Field(None, description="Name of a model of `GET /models`; the default when absent.")
    title: GivenTitle | None = Field(None, description="Title of the session; the agent names it when absent.")


class TitleBody(RequestBody):
    """The new title of a session."""

    title: GivenTitle


class PinBody(RequestBody):
    """The new pin state of a session."""

    is_pinned: StrictBool


class Created(Schema):
    """A new session."""

    session_id: str


class CreatedAnswer(SuccessAnswer):
    """The envelope that contains `Created`."""

    data: Created


class Renamed(Schema):
    """The title of a session."""

    session_id: str
    title: str


class RenamedAnswer(SuccessAnswer):
    """The envelope that contains `Renamed`."""

    data: Renamed


class Pinned(Schema):
    """A session and its pin state."""

    session_id: str
    is_pinned: bool


class PinnedAnswer(SuccessAnswer):
    """The envelope that contains `Pinned`."""

    data: Pinned


class SessionDetail(Schema):
    """A session with its events, or the requested part of them, in order."""

    session_id: str
    title: str | None = Field(description="null until the session has a name.")
    status: SessionStatus
    is_pinned: bool = _PINNED
    is_shared: bool = _SHARED
    model: str = _MODEL
    usage: UsageData
    events: list[EventItem]


class SessionAnswer(SuccessAnswer):
    """The envelope that contains `SessionDetail`."""

    data: SessionDetail


class SessionSummary(Schema):
    """A session in a list."""

    session_id: str
    title: str | None
    latest_message: str | None
    latest_message_at: int | None = Field(description="Whole seconds since the epoch, UTC.")
    status: SessionStatus
    unread_message_count: int = Field(description="Messages of the agent that no chat stream has delivered yet.")
    is_pinned: bool = _PINNED
    is_shared: bool = _SHARED
    model: str = _MODEL
    usage: UsageData


class SessionList(Schema):
    """A page of sessions, latest first."""

    sessions: list[SessionSummary]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class SessionsAnswer(SuccessAnswer):
    """The envelope that contains `SessionList`."""

    data: SessionList


class SessionsFrame(Schema):
    """The first page of sessions, as it is now."""

    event: Literal["sessions"]
    data: SessionList


EventCount = Annotated[int | None, Query(ge=1, le=MAX_EVENTS, description="Maximum number of events.")]
Tail = Annotated[int | None, Query(ge=1, le=MAX_EVENTS, description="Return only this many of the newest events.")]
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Maximum number of sessions.")]


@router.put("", responses=answers(CreatedAnswer, 400, 413, 503), openapi_extra=body(CreateBody))
async def create_session(request: Request, services: RequestServices, owner: Owner) -> Response:
    """Create a session. Nothing is started for it until its first message."""
    wanted = await read_body(request, CreateBody)
    title = " ".join((wanted.title or "").split())
    session_id = await services.sessions.create(owner=owner, model=wanted.model or "", title=title)
    return success({"session_id": session_id})


@router.get("", responses=answers(SessionsAnswer, 400, 503))
async def list_sessions(
    services: RequestServices,
    owner: Owner,
    limit: PageSize = DEFAULT_PAGE,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page.")] = None,
) -> Response:
    """Return a page of your sessions, latest first."""
    page = await services.sessions.page(owner=owner, limit=limit, cursor=cursor or None)
    return success(_page_data(page, services))


@router.post("", responses=streams(SessionsFrame, 400, 503, example=_EXAMPLE))
async def watch_sessions(
    services: RequestServices, owner: Owner, hold_stream: HoldStream, limit: PageSize = DEFAULT_PAGE
) -> Response:
    """Stream the first page of your sessions: at once, and again whenever something in it changes."""
    hold_stream(owner)
    return EventStream(
        services.sessions.watch(owner=owner, limit=limit),
        lambda page: _page_frames(page, services),
        heartbeat=services.heartbeat,
        end_streams=services.end_streams,
    )


@router.get("/{session_id}", responses=answers(SessionAnswer, 400, 404, 503))
async def get_session(
    services: RequestServices,
    owner: Owner,
    session_id: SessionId,
    after: AfterQuery = None,
    limit: EventCount = None,
    tail: Tail = None,
) -> Response:
    """Return a session with its events: all of them, or the part that the parameters ask for."""
    view, number = services.view, parse_event_id(after)
    if view.hides_events:
        # The client counts the events that it is shown.
        history = await services.sessions.history(session_id, owner=owner, after=number, limit=None, tail=None)
        history = replace(history, pages=_shown_part(history.pages, view, limit=limit, tail=tail))
    else:
        history = await services.sessions.history(session_id, owner=owner, after=number, limit=limit, tail=tail)
    # Read the first page before the response starts, so that a failing store is reported with its status.
    first = await anext(history.pages, None) or ()
    second = await anext(history.pages, None)
    opening = _history_start(history.session, services)
    if second is None:
        return success_json(opening + history_items(first) + b"]}")
    return StreamingResponse(_history_parts(opening, [second, first], history), media_type=JSON)


@router.delete("/{session_id}", responses=answers(EmptyAnswer, 404, 503))
async def delete_session(services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Stop the session's run, destroy its sandbox, and delete its events and memory."""
    await services.sessions.delete(session_id, owner=owner)
    return success(None)


@router.post("/{session_id}/stop", responses=answers(EmptyAnswer, 404, 503))
async def stop_session(services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Stop the session's run. `done` is written before the response. Without a run, change nothing."""
    await services.sessions.stop(session_id, owner=owner)
    return success(None)


@router.patch(
    "/{session_id}/title", responses=answers(RenamedAnswer, 400, 404, 413, 503), openapi_extra=body(TitleBody)
)
async def rename_session(request: Request, services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Give the session a title, which the agent then leaves as it is. Its streams receive a `title` event."""
    wanted = await read_body(request, TitleBody)
    title = await services.sessions.rename(session_id, wanted.title, owner=owner)
    return success({"session_id": session_id, "title": title})


@router.post("/{session_id}/pin", responses=answers(PinnedAnswer, 400, 404, 413, 503), openapi_extra=body(PinBody))
async def pin_session(request: Request, services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Pin the session, or unpin it. The order of the list does not depend on it."""
    wanted = await read_body(request, PinBody)
    await services.sessions.pin(session_id, owner=owner, is_pinned=wanted.is_pinned)
    return success({"session_id": session_id, "is_pinned": wanted.is_pinned})


@router.post("/{session_id}/clear_unread_message_count", responses=answers(EmptyAnswer, 404, 503))
async def clear_unread_message_count(services: RequestServices, owner: Owner, session_id: SessionId) -> Response:
    """Count all messages of the session as delivered."""
    await services.sessions.mark_read(session_id, owner=owner)
    return success(None)


async def _shown_part(
    pages: AsyncIterator[Sequence[EventRecord]], view: WireView, *, limit: int | None, tail: int | None
) -> AsyncGenerator[Sequence[EventRecord], None]:
    """Yield the shown events: of the newest `tail` ones, the first `limit`."""
    newest: deque[EventRecord] = deque(maxlen=tail)
    left = limit
    async with aclosing(cast("AsyncGenerator[Sequence[EventRecord], None]", pages)) as source:
        async for page in source:
            shown = view.shown(page)
            if tail is not None:
                newest.extend(shown)
            elif shown := shown[:left]:
                yield shown
                left = None if left is None else left - len(shown)
                if left == 0:
                    return
    if newest:
        yield list(newest)[:limit]


async def _history_parts(start: bytes, read: list[Sequence[EventRecord]], history: History) -> AsyncIterator[bytes]:
    """Return the response for a history of several pages, of which `read` are the first, in reverse.

    They are removed from the list, so that a client that does not read keeps only one page.
    """
    # The use case returns a generator, which must be closed even if the client leaves early.
    async with aclosing(cast("AsyncGenerator[Sequence[EventRecord], None]", history.pages)) as pages:
        separator = OPENING + start
        while read:
            for part in _page_parts(read.pop()):
                yield separator + part
                separator = b","
        async for page in pages:
            for part in _page_parts(page):
                yield separator + part
        yield b"]}" + CLOSING


def _page_parts(page: Sequence[EventRecord]) -> Iterator[bytes]:
    for first in range(0, len(page), _EVENTS_PER_WRITE):
        yield history_items(page[first : first + _EVENTS_PER_WRITE])


def _history_start(session: Session, services: Services) -> bytes:
    """Return the JSON of a session up to its first event."""
    head = {"session_id": session.id, **_summary(session, services)}
    return orjson.dumps(head)[:-1] + b',"events":['


def _summary(session: Session, services: Services) -> dict[str, object]:
    """Return what both a session and its row in the list have."""
    return {
        "title": session.title or None,
        "status": services.view.status(session.status),
        "is_pinned": session.is_pinned,
        "is_shared": False,
        "model": services.models.name_of(session.model),
        "usage": usage_object(session.usage),
    }


def _page_frames(page: SessionPage, services: Services) -> Iterator[bytes]:
    yield b"event: sessions\ndata: %b\n\n" % orjson.dumps(_page_data(page, services))


def _page_data(page: SessionPage, services: Services) -> dict[str, object]:
    sessions = [
        {
            "session_id": session.id,
            "latest_message": session.latest_message or None,
            "latest_message_at": session.latest_message_at,
            "unread_message_count": session.unread_count,
            **_summary(session, services),
        }
        for session in page.sessions
    ]
    return {"sessions": sessions, "next_cursor": page.next_cursor}
