"""The conversation: saying something, and following what comes of it."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.application.services.chat import ChatRequest
from app.domain.errors import TooLarge
from app.interfaces.api.document import body, operation_id, streams
from app.interfaces.api.params import (
    After,
    IdempotencyKey,
    LastEventId,
    Owner,
    SessionId,
    TicketOf,
    Use,
    position,
    read_body,
    visitor_of,
)
from app.interfaces.api.schemas.requests import ChatBody
from app.interfaces.api.schemas.streams import EventFrame, LiveFrame
from app.interfaces.sse import EventStream, all_frames, event_frames

MAX_MESSAGE = 100_000
"""Characters of one message."""

_EXAMPLE = """\
: open

id: 000000000002
event: message
data: {"event_id":"000000000002","timestamp":1767225600,"role":"assistant","content":"Hello."}

id: 000000000003
event: done
data: {"event_id":"000000000003","timestamp":1767225600}

"""

router = APIRouter(
    prefix="/api/v1/sessions", tags=["chat"], default_response_class=Response, generate_unique_id_function=operation_id
)


@router.post(
    "/{session_id}/chat",
    responses=streams(LiveFrame, 400, 404, 413, 429, 503, example=_EXAMPLE),
    openapi_extra=body(ChatBody),
)
async def chat(
    request: Request,
    services: Use,
    owner: Owner,
    session_id: SessionId,
    last_event_id: LastEventId = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Say something, or, without a message, attach to what is going on. Ends after `done`, `error` or `wait`.

    Closing the connection does not stop the run."""
    said = await read_body(request, ChatBody)
    message = said.message or ""
    if len(message) > MAX_MESSAGE:
        raise TooLarge(f"message: longer than {MAX_MESSAGE} characters")
    items = await services.chat.chat(
        session_id,
        ChatRequest(
            message=message,
            timestamp=said.timestamp,
            after=position(said.event_id or last_event_id),
            key=idempotency_key,
        ),
        owner=owner,
    )
    return EventStream(
        items,
        all_frames if said.stream else event_frames,
        heartbeat=services.heartbeat,
        end_streams=services.end_streams,
    )


@router.get("/{session_id}/events", responses=streams(EventFrame, 400, 401, 404, 503, example=_EXAMPLE))
async def follow_events(
    request: Request,
    services: Use,
    session_id: SessionId,
    last_event_id: LastEventId = None,
    after: After = None,
    ticket: TicketOf = None,
) -> Response:
    """Every event after the one that is named, then live for as long as the session lives. For `EventSource`.

    A ticket opens it once: an `EventSource` that connects again by itself comes with the used one, is answered with 401
    and gives up. Open a new one then, with a new ticket and `?after=` the last event."""
    number = position(last_event_id or after) or 0
    visitor = await visitor_of(request, session_id, ticket)
    items = await services.chat.follow(session_id, after=number, owner=visitor.owner)
    return EventStream(items, event_frames, heartbeat=services.heartbeat, end_streams=services.end_streams)
