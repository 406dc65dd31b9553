"""Encoding of events: one line of JSON, the same in streams and in the history."""

import json
from pathlib import Path
from types import MappingProxyType

import pytest

from app.domain.errors import InvalidInput
from app.domain.models.event import (
    EVENT_TYPES,
    Event,
    EventRecord,
    MessageEvent,
    StatusDelta,
    TextDelta,
    ToolCalledEvent,
)
from app.domain.models.tool import OpenCall, ToolResult
from app.interfaces.wire import (
    delta_frame,
    encode_event,
    event_id,
    event_number,
    history_items,
    sse_frame,
)
from tests.unit.golden.events_v1 import AT, EVENTS

GOLDEN = Path(__file__).parent / "golden" / "events_v1.jsonl"


def record(event: Event, number: int = 1) -> EventRecord:
    return EventRecord(number, event.type, encode_event(event, number, AT))


def called(**data: object) -> Event:
    call = OpenCall(id="c", toolkit="mcp", function="f")
    return ToolCalledEvent.of(call, ToolResult(success=True, text="", data=data))


def test_encoder_writes_same_bytes_as_version_1() -> None:
    today = [history_items([record(event, number)]) for number, event in enumerate(EVENTS, start=1)]
    assert today == GOLDEN.read_bytes().splitlines()


def test_golden_file_has_every_event_type() -> None:
    assert {type(event) for event in EVENTS} == set(EVENT_TYPES)


def test_event_ids_sort_as_strings_and_parse_to_their_numbers() -> None:
    numbers = [1, 9, 10, 99, 100, 12345, 10**9]
    ids = [event_id(number) for number in numbers]
    assert sorted(ids) == ids
    assert [event_number(text) for text in ids] == numbers
    assert event_number("42") == 42


@pytest.mark.parametrize("text", ["", "0", "000000000000", "-1", "+1", " 1", "1\n", "1.0", "1e3", "٣", "x", "9" * 19])
def test_invalid_event_id_raises_invalid_input(text: str) -> None:
    with pytest.raises(InvalidInput):
        event_number(text)


def test_frame_has_id_event_and_one_line_of_data() -> None:
    one = record(MessageEvent(role="user", content="a\nb\r\u2028c"), 7)
    frame = sse_frame(one)
    assert frame == b"id: 000000000007\nevent: message\ndata: " + one.data + b"\n\n"
    assert len(frame[:-2].splitlines()) == 3


def test_status_frame_has_no_id_and_no_unknown_delay() -> None:
    frames = [delta_frame(StatusDelta("busy", seconds)) for seconds in (1.5, None)]
    assert frames == [
        b'event: status_delta\ndata: {"text":"busy","retry_in":1.5}\n\n',
        b'event: status_delta\ndata: {"text":"busy"}\n\n',
    ]


def test_delta_frame_has_no_id() -> None:
    assert delta_frame(TextDelta("m", "a\nb")) == b'event: message_delta\ndata: {"message_id":"m","delta":"a\\nb"}\n\n'
    assert delta_frame(TextDelta("m", "\ud83d")).endswith('"\ufffd"}\n\n'.encode())


def test_history_item_contains_same_bytes_as_stream() -> None:
    one = record(EVENTS[0])
    assert history_items([one]) == b'{"event":"message","data":' + one.data + b"}"


def test_texts_for_the_model_are_never_encoded() -> None:
    for event, number in zip(EVENTS, range(1, 20), strict=False):
        assert b"for the model only" not in encode_event(event, number, AT)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),
        (2**70, 2**70),
        (float("nan"), None),
        (["\udc00", float("inf"), -float("inf")], ["\ufffd", None, None]),
        ({1: "x\n\ud800"}, {"1": "x\n\ufffd"}),
        (MappingProxyType({"a": (1, 2)}), {"a": [1, 2]}),
        (Path("/x"), "/x"),
    ],
)
def test_unencodable_tool_data_becomes_one_line_of_valid_json(sent: object, shown: object) -> None:
    data = encode_event(called(value=sent), 1, AT)
    assert len(data.splitlines()) == 1
    assert json.loads(data, parse_constant=pytest.fail)["result"]["data"] == {"value": shown}


def test_deeply_nested_tool_data_is_encoded() -> None:
    nested: object = "bottom"
    for _ in range(400):
        nested = [nested]
    assert b"bottom" in encode_event(called(value=nested), 1, AT)


def test_frame_escapes_every_unicode_line_separator() -> None:
    text = "a\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029z"
    data = encode_event(MessageEvent(role="user", content=text), 1, 0)
    assert len(data.decode().splitlines()) == 1
    assert json.loads(data)["content"] == text
    assert len(delta_frame(TextDelta("m", text)).decode().rstrip("\n").splitlines()) == 2
