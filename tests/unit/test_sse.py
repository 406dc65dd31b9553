"""EventStream: encoding of items, backpressure, disconnects and shutdown."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from sse_starlette.sse import AppStatus
from starlette.types import Message

from app.domain.errors import NotFound, StoreUnavailable
from app.domain.models.event import EventRecord, StatusDelta, TextDelta
from app.interfaces import sse
from app.interfaces.sse import CHUNK, EventStream, all_frames, event_frames, record_chunks
from app.interfaces.wire import sse_frame


def record(number: int, size: int = 2) -> EventRecord:
    return EventRecord(number, "message", b"{" + b" " * (size - 2) + b"}")


def test_small_events_are_joined_into_one_chunk() -> None:
    [chunk] = record_chunks([record(1), record(2)])
    assert chunk == b"id: 000000000001\nevent: message\ndata: {}\n\nid: 000000000002\nevent: message\ndata: {}\n\n"


def test_large_events_are_split_into_bounded_chunks() -> None:
    records = [record(number, 100_000) for number in range(1, 21)]
    chunks = list(record_chunks(records))
    assert max(map(len, chunks)) <= CHUNK
    assert b"".join(chunks).count(b"\n\n") == 20


@pytest.mark.parametrize("sizes", [[CHUNK], [CHUNK + 1], [2, CHUNK], [CHUNK - 2, 2, 2], [2, 3 * CHUNK, 2, CHUNK, 2]])
def test_chunks_hold_every_frame_once_and_in_order(sizes: list[int]) -> None:
    records = [record(number, size) for number, size in enumerate(sizes, 1)]
    chunks = list(record_chunks(records))
    assert b"".join(chunks) == b"".join(map(sse_frame, records))
    assert all(chunks)


def test_readers_of_same_events_share_chunk() -> None:
    records = [record(1), record(2)]
    assert next(record_chunks(records)) is next(record_chunks(list(records)))


def test_deltas_are_encoded_only_by_all_frames() -> None:
    assert list(event_frames(())) == []
    assert list(event_frames(TextDelta("m", "x"))) == []
    assert list(event_frames(StatusDelta("busy"))) == []
    assert list(all_frames(StatusDelta("busy"))) == [b'event: status_delta\ndata: {"text":"busy"}\n\n']
    assert list(all_frames(TextDelta("m", "x"))) == [b'event: message_delta\ndata: {"message_id":"m","delta":"x"}\n\n']


class Client:
    """An ASGI client that accepts messages while `reading` is set."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reading.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


class Items:
    """A stream of single events that records how many were taken and whether it was closed."""

    def __init__(self, count: int, *, error: Exception | None = None, endless: bool = False) -> None:
        self.taken = 0
        self.closed = False
        self._count = count
        self._error = error
        self._endless = endless

    async def __call__(self) -> AsyncGenerator[Sequence[EventRecord], None]:
        try:
            for number in range(1, self._count + 1):
                self.taken = number
                yield [record(number)]
            if self._error is not None:
                raise self._error
            if self._endless:
                await asyncio.Event().wait()
        finally:
            self.closed = True


def stream(items: Items, encode: object = event_frames) -> EventStream:
    return EventStream(items(), encode, heartbeat=15, end_streams=lambda: None)  # type: ignore[arg-type]


SCOPE = {"type": "http", "method": "GET"}


async def test_stream_sends_every_item_and_completes() -> None:
    client, items = Client(), Items(100)
    await stream(items)(SCOPE, client.receive, client.send)
    assert client.body.count(b"event: message") == 100
    assert client.complete
    assert items.closed


async def test_stream_waits_for_client_that_does_not_read() -> None:
    client, items = Client(), Items(100)
    client.reading.clear()
    task = asyncio.create_task(stream(items)(SCOPE, client.receive, client.send))
    for _ in range(50):
        await asyncio.sleep(0)
    assert items.taken <= 1
    client.reading.set()
    await task
    assert client.body.count(b"event: message") == 100


async def test_disconnect_closes_items_immediately() -> None:
    client, items = Client(), Items(3, endless=True)
    task = asyncio.create_task(stream(items)(SCOPE, client.receive, client.send))
    while client.body.count(b"event: message") < 3:
        await asyncio.sleep(0)
    client.left.set()
    await task
    assert items.closed
    assert not client.complete


async def test_disconnect_while_send_is_blocked_closes_items() -> None:
    client, items = Client(), Items(3, endless=True)
    client.reading.clear()
    task = asyncio.create_task(stream(items)(SCOPE, client.receive, client.send))
    await asyncio.sleep(0)
    client.left.set()
    await task
    assert items.closed or items.taken == 0


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is full"), NotFound("no such session")])
async def test_domain_error_completes_stream_without_error_text(error: Exception) -> None:
    client, items = Client(), Items(2, error=error)
    await stream(items)(SCOPE, client.receive, client.send)
    assert client.body.count(b"event:") == 2
    assert str(error).encode() not in client.body
    assert client.complete


async def test_unexpected_error_leaves_response_incomplete() -> None:
    client, items = Client(), Items(2, error=RuntimeError("bug"))
    with pytest.raises(RuntimeError):
        await stream(items)(SCOPE, client.receive, client.send)
    assert not client.complete


async def test_burst_of_events_pauses_between_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def record_pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(sse, "pause", record_pause)
    client = Client()
    await stream(Items(sse.BURST))(SCOPE, client.receive, client.send)
    assert pauses == []
    await stream(Items(100))(SCOPE, client.receive, client.send)
    assert set(pauses) == {sse.PAUSE}


async def test_shutdown_ends_streams_before_cancelling_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def ends_when_asked() -> AsyncGenerator[Sequence[EventRecord], None]:
        yield [record(1)]
        await asked.wait()

    response = EventStream(ends_when_asked(), event_frames, heartbeat=15, end_streams=asked.set)
    monkeypatch.setattr(AppStatus, "should_exit", True)
    client = Client()
    await response(SCOPE, client.receive, client.send)
    assert client.complete


async def test_head_request_gets_headers_and_never_starts_items() -> None:
    client, items = Client(), Items(1)
    await stream(items)({**SCOPE, sse.HEAD_KEY: True}, client.receive, client.send)
    assert client.body == b""
    assert items.taken == 0
    assert client.complete
