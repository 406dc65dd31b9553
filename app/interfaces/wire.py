"""Encode events as clients receive them: JSON, encoded once, with the same bytes in streams and in the history."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import cast

import orjson

from app.domain.errors import InvalidInput
from app.domain.models.event import (
    Event,
    EventRecord,
    RunUsage,
    SessionStatus,
    StatusDelta,
    TextDelta,
    ToolCallingEvent,
)
from app.domain.models.message import Usage

_ID_DIGITS = 12
"""Number of digits of an event id. All ids have the same length, so that they also sort as strings."""

_MAX_ID_DIGITS = 18
"""Maximum number of digits of an event id; more would not fit the stores' 64-bit integers."""


class WireView:
    """The view that clients get of stored events and of sessions: by default, everything as it is."""

    hides_events = False
    """Whether `shown` leaves out events. Their ids stay valid: a stream continues after any event of the session."""

    def shown(self, records: Sequence[EventRecord]) -> Sequence[EventRecord]:
        """Return the events that clients receive, in order."""
        return records

    def status(self, status: SessionStatus) -> str:
        """Return the status of a session as clients know it."""
        return status


class _View20250602(WireView):
    """The protocol of the oldest published frontend, which adds an entry for every `tool` event that it receives.

    Its server sent the `called` event of a search, which has the results, and the `calling` event of other tools.
    """

    hides_events = True

    def shown(self, records: Sequence[EventRecord]) -> Sequence[EventRecord]:
        return [record for record in records if record.type != ToolCallingEvent.type or _is_sent_once(record.data)]

    def status(self, status: SessionStatus) -> str:
        return "active" if status == "running" else status


WIRE_VIEWS: Mapping[str, WireView] = {"": WireView(), "2025-06-02": _View20250602()}
"""The views by the value of WIRE_COMPAT."""


def event_id(number: int) -> str:
    """Return the id of event `number`."""
    return f"{number:0{_ID_DIGITS}d}"


def event_number(text: str) -> int:
    """Return the event number of an `event_id`, with or without leading zeros.

    Raises:
        InvalidInput: `text` is not an id that this service can have issued.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS and int(text) >= 1):
        raise InvalidInput("event_id: this session never issued it")
    return int(text)


def screenshot_address(session_id: str, screenshot_id: str) -> str:
    """Return the path from which clients download a screenshot."""
    return f"/api/v1/sessions/{session_id}/pictures/{screenshot_id}"


def encode_event(event: Event, number: int, at: int) -> bytes:
    """Return the `data` object of `event` as one line of UTF-8 JSON.

    Args:
        event: The event. Its fields follow `event_id` and `timestamp`, in the order of the class.
        number: Its number in the session, from 1.
        at: When it happened, in whole seconds since the epoch, UTC.
    """
    data: dict[str, object] = {"event_id": event_id(number), "timestamp": at}
    for name, is_optional in _event_fields(type(event)):
        value = getattr(event, name)
        if is_optional:
            if value is not None:
                data[name] = _without_none(value)
        else:
            data[name] = value
    return _encode(data)


def usage_object(usage: Usage) -> object:
    """Return the `usage` of a session, as in the data of the events that end a run."""
    return _without_none(RunUsage.of(usage))


def sse_frame(record: EventRecord) -> bytes:
    """Return `record` as a Server-Sent Event."""
    return b"id: %012d\nevent: %b\ndata: %b\n\n" % (record.number, record.type.encode(), record.data)


def delta_frame(delta: TextDelta | StatusDelta) -> bytes:
    """Return a part of a message or a status as a Server-Sent Event without an id, as it is never stored."""
    if isinstance(delta, StatusDelta):
        retry_in = {} if delta.retry_in is None else {"retry_in": delta.retry_in}
        return b"event: status_delta\ndata: %b\n\n" % _encode({"text": delta.text, **retry_in})
    return b"event: message_delta\ndata: %b\n\n" % _encode({"message_id": delta.message_id, "delta": delta.delta})


def state_frame(name: str, data: dict[str, object]) -> bytes:
    """Return the state of something as a Server-Sent Event `name` without an id, as it is never stored."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


def history_items(records: Iterable[EventRecord]) -> bytes:
    """Return `records` as the items of a session's `events`: `{"event": type, "data": {...}}`, separated by commas.

    Parts are joined once, so that a long history is copied only once.
    """
    parts: list[bytes] = []
    for record in records:
        parts += (b',{"event":"' if parts else b'{"event":"', record.type.encode(), b'","data":', record.data, b"}")
    return b"".join(parts)


def _is_sent_once(data: bytes) -> bool:
    """Return whether a `tool` event is the one of its pair that the oldest frontend knows."""
    event = cast("Mapping[str, object]", orjson.loads(data))
    return event["status"] == ("called" if event["name"] == "search" else "calling")


@cache
def _event_fields(event_type: type[Event]) -> tuple[tuple[str, bool], ...]:
    """Return the name of each field, and whether its value is left out when it is None."""
    return tuple((field.name, field.default is None) for field in fields(event_type))


def _without_none(value: object) -> object:
    """Return a dataclass as an object without the fields that are None; return anything else unchanged."""
    if not is_dataclass(value):
        return value
    named = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: item for name, item in named if item is not None}


def _encode(data: dict[str, object]) -> bytes:
    """Return `data` as one line of JSON. Escape Unicode line separators, which many clients take for line ends."""
    try:
        encoded = orjson.dumps(data)
    except TypeError:
        encoded = _encode_leniently(data)
    if b"\xe2\x80\xa8" in encoded or b"\xe2\x80\xa9" in encoded or b"\xc2\x85" in encoded:
        encoded = encoded.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        encoded = encoded.replace(b"\xc2\x85", b"\\u0085")
    return encoded


def _encode_leniently(data: dict[str, object]) -> bytes:
    """Encode what orjson refuses: lone surrogates, integers of more than 64 bits, deep nesting.

    Join surrogates that form a pair and replace others by U+FFFD. Write NaN and infinities as null, as orjson does.
    """
    finite = json.loads(json.dumps(data, default=_to_plain), parse_constant=lambda _: None)
    text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _to_plain(value: object) -> object:
    """Convert what `json` cannot encode itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else str(value)
