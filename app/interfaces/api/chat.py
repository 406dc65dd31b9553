"""The conversation: send a message, and follow the events of a session."""

from functools import partial
from typing import Annotated

from fastapi import Request
from pydantic import Field, StrictBool, StrictInt, StrictStr
from starlette.responses import Response

from app.application.services.chat import ChatRequest
from app.domain.errors import TooLarge
from app.interfaces.api.dependencies import (
    AfterQuery,
    HoldStream,
    IdempotencyKey,
    LastEventId,
    Owner,
    RequestBody,
    RequestServices,
    SessionId,
    TicketQuery,
    get_caller,
    parse_event_id,
    read_body,
)
from app.interfaces.api.openapi import api_router, body, streams
from app.interfaces.api.schemas import EventFrame, LiveFrame
from app.interfaces.sse import EventStream, all_frames, event_frames

MAX_MESSAGE = 100_000
"""Maximum length of a message, in characters."""

LATEST = 253_402_300_799
"""Latest timestamp of a message: the end of the year 9999, in seconds since the epoch."""

_EXAMPLE = """\
: open

id: 000000000002
event: message
data: {"event_id":"000000000002","timestamp":1767225600,"role":"assistant","content":"Hello."}

id: 000000000003
event: done
data: {"event_id":"000000000003","timestamp":1767225600}

"""

router = api_router("chat", "/api/v1/sessions")


class ChatBody(RequestBody):
    """A message to the agent, or without one, a request to follow what is going on. Every field may be null."""

    message: StrictStr | None = Field(
        None, description="At most 100,000 characters. Absent or blank: attach.", examples=["Which files are here?"]
    )
    timestamp: Annotated[StrictInt, Field(ge=0, le=LATEST)] | None = Field(
        None, description="When it was written, in whole seconds since the epoch, UTC; now when absent."
    )
    event_id: StrictStr | None = Field(None, description="The last event that the client has.")
    model: StrictStr | None = Field(
        None,
        description="Name of the model that the session uses from this message on. Ignored without a message.",
    )
    stream: StrictBool | None = Field(
        None,
        description="Also send `message_delta` while the agent writes, and `status_delta` while the model is awaited.",
    )


@router.post(
    "/{session_id}/chat",
    responses=streams(LiveFrame, 400, 404, 413, 429, 503, example=_EXAMPLE),
    openapi_extra=body(ChatBody),
)
async def chat(
    request: Request,
    services: RequestServices,
    owner: Owner,
    session_id: SessionId,
    hold_stream: HoldStream,
    last_event_id: LastEventId = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Send a message, or without one, attach to what is going on. The stream ends after `done`, `error` or `wait`.

    Closing the connection does not stop the run.
    """
    sent = await read_body(request, ChatBody)
    message = sent.message or ""
    if len(message) > MAX_MESSAGE:
        raise TooLarge(f"message: longer than {MAX_MESSAGE} characters")
    hold_stream(owner)
    items = await services.chat.chat(
        session_id,
        ChatRequest(
            message=message,
            timestamp=sent.timestamp,
            after=parse_event_id(sent.event_id or last_event_id),
            key=idempotency_key,
            model=sent.model or "",
        ),
        owner=owner,
    )
    return EventStream(
        items,
        partial(all_frames if sent.stream else event_frames, view=services.view),
        heartbeat=services.heartbeat,
        end_streams=services.end_streams,
    )


@router.get("/{session_id}/events", responses=streams(EventFrame, 400, 401, 404, 503, example=_EXAMPLE))
async def follow_events(
    request: Request,
    services: RequestServices,
    session_id: SessionId,
    hold_stream: HoldStream,
    last_event_id: LastEventId = None,
    after: AfterQuery = None,
    ticket: TicketQuery = None,
) -> Response:
    """Stream every event after the named one, then live, for as long as the session exists. For `EventSource`.

    A ticket opens the stream once. An `EventSource` that reconnects by itself sends the used ticket, receives 401 and
    gives up. Then open a new one, with a new ticket and `?after=` the last event.
    """
    number = parse_event_id(last_event_id or after) or 0
    caller = await get_caller(request, session_id, ticket)
    hold_stream(caller.owner)
    items = await services.chat.follow(session_id, after=number, owner=caller.owner)
    encode = partial(event_frames, view=services.view)
    return EventStream(items, encode, heartbeat=services.heartbeat, end_streams=services.end_streams)
