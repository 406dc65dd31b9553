"""Endpoints 6 and 11: the content of streams, and how they resume and end."""

import asyncio
from contextlib import aclosing

import httpx
import pytest

from app.domain.models.event import DoneEvent, MessageEvent, TextDelta, TitleEvent, WaitEvent
from tests.support.api_harness import API, ApiHarness, serve
from tests.support.eventually import eventually
from tests.support.sse import SseFrame, read_frames


def numbers(sent: list[SseFrame]) -> list[int]:
    return [int(frame.id or 0) for frame in sent]


async def real(response: httpx.Response) -> list[SseFrame]:
    return [frame async for frame in read_frames(response)]


async def test_message_starts_run_and_is_not_streamed_back(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    async with live_client.stream("POST", f"{API}/{session_id}/chat", json={"message": "hello"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        sent = await real(answer)
    assert [frame.event for frame in sent] == ["title", "message", "done"]
    assert [frame.id for frame in sent] == [frame.data["event_id"] for frame in sent]
    assert sent[1].data["content"] == "You said: hello"


async def test_attach_after_run_replays_all_events_and_ends(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    assert await harness.send_message(session_id) == []
    await harness.send_message(session_id, {"message": "hello"})
    for body in ({}, {"message": None, "event_id": None}, {"message": " \n"}, {"event_id": ""}):
        assert numbers(await harness.send_message(session_id, body)) == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"  ", b"{}"])
async def test_empty_body_attaches(harness: ApiHarness, client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post(f"{API}/{await harness.create_session()}/chat", content=content)
    assert answer.status_code == 200


@pytest.mark.parametrize("seen", [0, 1, 2, 3, 4])
async def test_stream_resumes_after_given_event_id(harness: ApiHarness, seen: int) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "hello"})
    expected = list(range(seen + 1, 5))
    body = {"event_id": str(seen)} if seen else {}
    assert numbers(await harness.send_message(session_id, body)) == expected
    header = {"Last-Event-ID": f"{seen:012}"} if seen else {}
    assert numbers(await harness.send_message(session_id, **header)) == expected


async def test_event_id_in_body_wins_over_last_event_id_header(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "hello"})
    assert numbers(await harness.send_message(session_id, {"event_id": "3"}, **{"Last-Event-ID": "1"})) == [4]


async def test_message_with_event_id_replays_missed_events_first(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "one"})
    assert numbers(await harness.send_message(session_id, {"message": "two", "event_id": "3"})) == [4, 6, 7, 8]


@pytest.mark.parametrize("event_id", ["x", "-1", "5", "1e3", "9" * 40, "٣", "0"])
async def test_unknown_event_id_returns_400(harness: ApiHarness, client: httpx.AsyncClient, event_id: str) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "hello"})
    for body in ({"event_id": event_id}, {"message": "more", "event_id": event_id}):
        answer = await client.post(f"{API}/{session_id}/chat", json=body)
        assert answer.status_code == 400
        assert answer.json()["msg"].startswith("event_id")
    assert (await client.get(f"{API}/{session_id}/events", params={"after": event_id})).status_code == 400
    assert len(await harness.list_events(session_id)) == 4  # nothing was stored


async def test_early_late_and_resumed_readers_receive_same_bytes(
    harness: ApiHarness, live_client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    harness.worker.gate.clear()

    async def read(body: dict[str, object]) -> bytes:
        return (await live_client.post(f"{API}/{session_id}/chat", json=body)).content

    sender = asyncio.create_task(read({"message": "hello"}))
    await harness.worker.waiting.wait()
    attached = asyncio.create_task(read({"event_id": "1"}))
    await eventually(lambda: len(harness.feed._topics[session_id].subscriptions) == 2)
    harness.worker.gate.set()
    first, second = await sender, await attached
    assert first == second == await read({"event_id": "1"})


async def test_event_is_streamed_immediately(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    harness.worker.gate.clear()
    async with live_client.stream("POST", f"{API}/{session_id}/chat", json={"message": "hello"}) as answer:
        sent = read_frames(answer)
        assert (await anext(sent)).event == "title"
        assert not harness.worker.gate.is_set()
        harness.worker.gate.set()
        assert [frame.event async for frame in sent] == ["message", "done"]


async def test_new_stream_sends_comment_before_any_event(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    async with live_client.stream("GET", f"{API}/{await harness.create_session()}/events") as answer:
        assert (await anext(read_frames(answer, comments=True))).comment == "open"


async def test_quiet_stream_sends_heartbeat_comments() -> None:
    harness = ApiHarness(heartbeat=0.02)
    async with (
        serve(harness) as live_client,
        live_client.stream("GET", f"{API}/{await harness.create_session()}/events") as answer,
    ):
        seen = read_frames(answer, comments=True)
        assert [(await anext(seen)).comment for _ in range(4)] == ["open", "ping", "ping", "ping"]
    await harness.close()


async def test_events_stream_continues_after_done_and_resumes_by_header(
    harness: ApiHarness, live_client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "one"})
    url = f"{API}/{session_id}/events"
    async with live_client.stream("GET", url, params={"after": "3"}) as answer:
        sent = read_frames(answer)
        assert (await anext(sent)).event == "done"
        await harness.send_message(session_id, {"message": "two"})
        assert (await anext(sent)).data["content"] == "two"
    async with live_client.stream("GET", url, params={"after": "1"}, headers={"Last-Event-ID": "7"}) as answer:
        assert (await anext(read_frames(answer))).id == "000000000008"


async def test_deleting_session_ends_events_streams(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    async with live_client.stream("GET", f"{API}/{session_id}/events") as answer:
        seen = read_frames(answer, comments=True)
        await anext(seen)
        await live_client.delete(f"{API}/{session_id}")
        assert [frame async for frame in seen] == []


async def test_disconnect_ends_stream_but_not_run(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    harness.worker.gate.clear()
    async with live_client.stream("POST", f"{API}/{session_id}/chat", json={"message": "hello"}) as answer:
        async with aclosing(read_frames(answer, comments=True)) as seen:
            await anext(seen)
    await eventually(lambda: session_id not in harness.feed._topics)
    harness.worker.gate.set()
    await harness.worker.finished.wait()
    assert [event["event"] for event in await harness.list_events(session_id)] == [
        "message",
        "title",
        "message",
        "done",
    ]


async def test_deltas_are_streamed_only_with_stream_true(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    harness.worker.gate.clear()

    async def read(stream: bool) -> list[SseFrame]:
        body = {"message": "hello"} if stream else {"event_id": "1"}
        async with live_client.stream("POST", f"{API}/{session_id}/chat", json={**body, "stream": stream}) as answer:
            return await real(answer)

    with_deltas = asyncio.create_task(read(True))
    await harness.worker.waiting.wait()
    without = asyncio.create_task(read(False))
    await eventually(lambda: len(harness.feed._topics[session_id].subscriptions) == 2)
    harness.feed.publish_delta(session_id, TextDelta("m1", "You "))
    harness.feed.publish_delta(session_id, TextDelta("m1", "said"))
    while harness.feed._topics[session_id].partial_message is not None and not all(
        subscription._pieces_read == 2 for subscription in harness.feed._topics[session_id].subscriptions
    ):
        await asyncio.sleep(0.001)
    harness.worker.gate.set()
    deltas = [frame for frame in await with_deltas if frame.event == "message_delta"]
    assert "".join(frame.data["delta"] for frame in deltas) == "You said"
    assert {(frame.id, frame.data["message_id"]) for frame in deltas} == {(None, "m1")}
    assert [frame.event for frame in await without] == ["title", "message", "done"]


async def test_repeated_idempotency_key_stores_one_message(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    key = {"Idempotency-Key": "k1"}
    first = await harness.send_message(session_id, {"message": "hello"}, **key)
    assert await harness.send_message(session_id, {"message": "hello"}, **key) == first
    assert harness.worker.runs == 1


async def test_repeated_key_with_final_event_id_gets_ended_stream(
    harness: ApiHarness,
) -> None:
    session_id = await harness.create_session()
    key = {"Idempotency-Key": "k1"}
    await harness.send_message(session_id, {"message": "hello"}, **key)
    async with asyncio.timeout(30):
        assert numbers(await harness.send_message(session_id, {"message": "hello", "event_id": "3"}, **key)) == [4]
        assert await harness.send_message(session_id, {"message": "hello", "event_id": "4"}, **key) == []
        await harness.send_message(session_id, {"message": "more"})
        assert numbers(await harness.send_message(session_id, {"message": "hello"}, **key)) == [2, 3, 4]
        assert await harness.send_message(session_id, {"message": "hello", "event_id": "8"}, **key) == []


@pytest.mark.parametrize("key", ["", "k" * 201])
async def test_idempotency_key_of_invalid_length_returns_400(
    harness: ApiHarness, client: httpx.AsyncClient, key: str
) -> None:
    answer = await client.post(
        f"{API}/{await harness.create_session()}/chat", json={"message": "x"}, headers={"Idempotency-Key": key}
    )
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["msg"]


@pytest.mark.parametrize(
    "body",
    [
        {"message": 5},
        {"message": ["x"]},
        {"message": {}},
        {"message": "x", "timestamp": "now"},
        {"message": "x", "timestamp": -1},
        {"message": "x", "timestamp": 1.5},
        {"message": "x", "timestamp": 253_402_300_800},
        {"message": "x", "timestamp": 10**400},
        {"message": "x", "timestamp": True},
        {"event_id": 4},
        {"stream": "yes"},
    ],
)
async def test_invalid_body_returns_400_that_names_the_field(
    harness: ApiHarness, client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    session_id = await harness.create_session()
    answer = await client.post(f"{API}/{session_id}/chat", json=body)
    assert answer.status_code == 400
    assert answer.json()["msg"].split(":")[0] in body
    assert await harness.list_events(session_id) == []


async def test_unknown_body_fields_are_ignored_and_timestamp_is_stored(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "x", "timestamp": 0, "attachments": [], "more": {"a": 1}})
    assert (await harness.list_events(session_id))[0]["data"]["timestamp"] == 0


async def test_too_long_message_returns_413(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "é" * 100_000})
    answer = await client.post(f"{API}/{session_id}/chat", json={"message": "x" * 100_001})
    assert answer.status_code == 413
    assert len(await harness.list_events(session_id)) == 4


async def test_stream_ends_after_wait(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    harness.worker.script = lambda message: [
        TitleEvent(title="t"), MessageEvent(role="assistant", content="Which?"), WaitEvent(), DoneEvent()
    ]  # fmt: skip
    assert [frame.event for frame in await harness.send_message(session_id, {"message": "x"})] == [
        "title",
        "message",
        "wait",
    ]


async def test_store_failure_returns_503_before_stream_and_ends_open_stream(
    harness: ApiHarness, live_client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await harness.commit_events(session_id, *(MessageEvent(role="assistant", content="x" * 2000) for _ in range(3000)))
    harness.store.trouble = "the disk is full"
    answer = await live_client.post(f"{API}/{session_id}/chat", json={"message": "x"})
    assert (answer.status_code, answer.json()["msg"]) == (503, "the disk is full")
    assert answer.headers["retry-after"] == "5"
    harness.store.trouble = None
    async with live_client.stream("POST", f"{API}/{session_id}/chat", json={}) as streamed:
        seen = read_frames(streamed, comments=True)
        assert [(await anext(seen)).id for _ in range(3)][-1] == "000000000002"
        harness.store.trouble = "the disk is full"
        rest = [frame async for frame in seen]
    assert all(frame.event == "message" for frame in rest)
    assert len(rest) < 3000


async def test_shutdown_completes_open_streams(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    async with serve(harness) as live_client, live_client.stream("GET", f"{API}/{session_id}/events") as answer:
        seen = read_frames(answer, comments=True)
        await anext(seen)
        harness.services.end_streams()
        assert [frame async for frame in seen] == []  # httpx raises when the last chunk is missing
