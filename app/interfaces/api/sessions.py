"""Sessions: create, look at, list, watch, delete, stop."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Annotated, cast

import orjson
from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from app.application.services.sessions import MAX_PAGE, History
from app.domain.models.event import EventRecord
from app.domain.models.session import Session, SessionPage
from app.interfaces.api.document import answers, operation_id, streams
from app.interfaces.api.params import After, Owner, SessionId, Use, position
from app.interfaces.api.schemas.answers import CreatedAnswer, EmptyAnswer, SessionAnswer, SessionsAnswer
from app.interfaces.api.schemas.streams import SessionsFrame
from app.interfaces.envelope import CLOSING, JSON, OPENING, success, success_json
from app.interfaces.sse import EventStream
from app.interfaces.wire import history_items

MAX_EVENTS = 5_000
DEFAULT_PAGE = 100
_EVENTS_A_WRITE = 50

_EXAMPLE = """\
: open

event: sessions
data: {"sessions":[],"next_cursor":null}

"""

router = APIRouter(
    prefix="/api/v1/sessions",
    tags=["sessions"],
    default_response_class=Response,
    generate_unique_id_function=operation_id,
)

EventCount = Annotated[int | None, Query(ge=1, le=MAX_EVENTS, description="At most so many events.")]
Tail = Annotated[int | None, Query(ge=1, le=MAX_EVENTS, description="Only the newest so many events.")]
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most so many sessions.")]


@router.put("", responses=answers(CreatedAnswer, 503))
async def create_session(services: Use, owner: Owner) -> Response:
    """A new session. Nothing is started for it until its first message."""
    return success({"session_id": await services.sessions.create(owner=owner)})


@router.get("", responses=answers(SessionsAnswer, 400, 503))
async def list_sessions(
    services: Use,
    owner: Owner,
    limit: PageSize = DEFAULT_PAGE,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Your sessions, latest first, a page at a time."""
    return success(_listed(await services.sessions.page(owner=owner, limit=limit, cursor=cursor or None)))


@router.post("", responses=streams(SessionsFrame, 400, 503, example=_EXAMPLE))
async def watch_sessions(services: Use, owner: Owner, limit: PageSize = DEFAULT_PAGE) -> Response:
    """The first page of your sessions as a stream: at once, and again whenever something in it changes."""
    return EventStream(
        services.sessions.watch(owner=owner, limit=limit),
        _page_frames,
        heartbeat=services.heartbeat,
        end_streams=services.end_streams,
    )


@router.get("/{session_id}", responses=answers(SessionAnswer, 400, 404, 503))
async def get_session(
    services: Use,
    owner: Owner,
    session_id: SessionId,
    after: After = None,
    limit: EventCount = None,
    tail: Tail = None,
) -> Response:
    """A session with its events: all of them, or the part that the parameters ask for."""
    history = await services.sessions.history(session_id, owner=owner, after=position(after), limit=limit, tail=tail)
    # The first page is read before the answer begins, so that a store that fails gets its status code.
    first = await anext(history.pages, None) or ()
    second = await anext(history.pages, None)
    opening = _opening(history.session)
    if second is None:
        return success_json(opening + history_items(first) + b"]}")
    return StreamingResponse(_whole(opening, (first, second), history), media_type=JSON)


@router.delete("/{session_id}", responses=answers(EmptyAnswer, 404, 503))
async def delete_session(services: Use, owner: Owner, session_id: SessionId) -> Response:
    """Stop the session's run, destroy its sandbox, forget its events and memory."""
    await services.delete_session(session_id, owner=owner)
    return success(None)


@router.post("/{session_id}/stop", responses=answers(EmptyAnswer, 404, 503))
async def stop_session(services: Use, owner: Owner, session_id: SessionId) -> Response:
    """End the session's run; `done` is written when this answers. Without a run it changes nothing."""
    await services.stop_run(session_id, owner=owner)
    return success(None)


async def _whole(opening: bytes, read: Sequence[Sequence[EventRecord]], history: History) -> AsyncIterator[bytes]:
    """The answer with a history of several pages, the first of which are `read`; the others one at a time."""
    # What the use case answers is a generator, which must not outlive an answer that is cut short.
    async with aclosing(cast("AsyncGenerator[Sequence[EventRecord], None]", history.pages)) as pages:
        separator = OPENING + opening
        for page in read:
            for piece in _pieces(page):
                yield separator + piece
                separator = b","
        async for page in pages:
            for piece in _pieces(page):
                yield separator + piece
        yield b"]}" + CLOSING


def _pieces(page: Sequence[EventRecord]) -> Iterator[bytes]:
    """A page in writes of some 60 kB: larger ones are fresh memory each time, which costs more than the writes."""
    for start in range(0, len(page), _EVENTS_A_WRITE):
        yield history_items(page[start : start + _EVENTS_A_WRITE])


def _opening(session: Session) -> bytes:
    """A session's data up to where its events begin."""
    head = {"session_id": session.id, "title": session.title or None, "status": session.status}
    return orjson.dumps(head)[:-1] + b',"events":['


def _page_frames(page: SessionPage) -> Iterator[bytes]:
    yield b"event: sessions\ndata: %b\n\n" % orjson.dumps(_listed(page))


def _listed(page: SessionPage) -> dict[str, object]:
    sessions = [
        {
            "session_id": session.id,
            "title": session.title or None,
            "latest_message": session.latest_message or None,
            "latest_message_at": session.latest_message_at,
            "status": session.status,
            "unread_message_count": session.unread_count,
        }
        for session in page.sessions
    ]
    return {"sessions": sessions, "next_cursor": page.next_cursor}
