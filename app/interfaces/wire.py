"""Events as clients get them: JSON, encoded once, the same bytes in a stream and in the history."""

import json
from collections.abc import Iterable, Mapping
from typing import assert_never, cast

import orjson

from app.domain.errors import InvalidInput
from app.domain.models.event import (
    DoneEvent,
    ErrorEvent,
    Event,
    EventRecord,
    MessageEvent,
    PlanEvent,
    StepEvent,
    TextDelta,
    TitleEvent,
    ToolCalledEvent,
    ToolCallingEvent,
    WaitEvent,
)

_ID_DIGITS = 12
_MAX_ID_DIGITS = 18  # what still fits the stores' 64-bit integers


def event_id(number: int) -> str:
    """The id of event `number`: twelve digits, so that ids grow as strings too."""
    return f"{number:0{_ID_DIGITS}d}"


def event_number(text: str) -> int:
    """The number behind an `event_id`; zeros in front may be missing.

    Raises:
        InvalidInput: `text` is not an id that we could have issued.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS and int(text) >= 1):
        raise InvalidInput("event_id: this session never issued it")
    return int(text)


def screenshot_address(session_id: str, screenshot_id: str) -> str:
    """Where clients fetch a session's screenshot: a path of this service."""
    return f"/api/v1/sessions/{session_id}/pictures/{screenshot_id}"


def encode_event(event: Event, number: int, at: int) -> bytes:
    """The `data` object of `event` as one line of UTF-8 JSON.

    `number` counts from 1 within the session; `at` is in whole seconds since the epoch, UTC.
    """
    return _dumps({"event_id": event_id(number), "timestamp": at, **_fields(event)})


def sse_frame(record: EventRecord) -> bytes:
    """`record` as one Server-Sent Event."""
    return b"id: %012d\nevent: %b\ndata: %b\n\n" % (record.number, record.type.encode(), record.data)


def delta_frame(delta: TextDelta) -> bytes:
    """A piece of a message as a Server-Sent Event. It is never stored, so it has no id to resume from."""
    return b"event: message_delta\ndata: %b\n\n" % _dumps({"message_id": delta.message_id, "delta": delta.delta})


def history_items(records: Iterable[EventRecord]) -> bytes:
    """`records` as the items of a session's `events`, `{"event": type, "data": {…}}`, with commas between them.

    Joined from pieces, so that a long history is copied once.
    """
    pieces: list[bytes] = []
    for record in records:
        pieces += (b',{"event":"' if pieces else b'{"event":"', record.type.encode(), b'","data":', record.data, b"}")
    return b"".join(pieces)


def _fields(event: Event) -> dict[str, object]:
    match event:
        case MessageEvent():
            return {"role": event.role, "content": event.content}
        case TitleEvent():
            return {"title": event.title}
        case PlanEvent():
            steps = [{"id": step.id, "description": step.description, "status": step.status} for step in event.steps]
            return {"steps": steps}
        case StepEvent():
            return {"id": event.id, "description": event.description, "status": event.status}
        case ToolCallingEvent() | ToolCalledEvent():
            return _tool_fields(event)
        case ErrorEvent():
            return {"error": event.error}
        case WaitEvent() | DoneEvent():
            return {}
        case _:
            assert_never(event)


def _tool_fields(event: ToolCallingEvent | ToolCalledEvent) -> dict[str, object]:
    call = event.call
    fields: dict[str, object] = {
        "tool_call_id": call.id,
        "name": call.toolkit,
        "function": call.function,
        "args": call.args,
        "status": "calling",
    }
    if isinstance(event, ToolCalledEvent):
        result = event.result
        fields["status"] = "called"
        fields["content"] = result.content
        fields["result"] = {"success": result.success, "message": result.message, "data": result.data}
    return fields


def _dumps(data: dict[str, object]) -> bytes:
    """One line of JSON, also for the many clients that take Unicode's line separators for the end of a line."""
    try:
        encoded = orjson.dumps(data)
    except TypeError:
        encoded = _dumps_anything(data)
    if b"\xe2\x80\xa8" in encoded or b"\xe2\x80\xa9" in encoded or b"\xc2\x85" in encoded:
        encoded = encoded.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        encoded = encoded.replace(b"\xc2\x85", b"\\u0085")
    return encoded


def _dumps_anything(data: dict[str, object]) -> bytes:
    """JSON for what a model or a tool sent and orjson refuses: lone surrogates, huge integers, deep nesting.

    Surrogates that belong together are joined, others become U+FFFD; NaN and infinities become null, as with orjson.
    """
    finite = json.loads(json.dumps(data, default=_plain), parse_constant=_null)
    text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _plain(value: object) -> object:
    """What `json` cannot encode by itself, as something that it can."""
    return dict(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else str(value)


def _null(_constant: str) -> None:
    return None
