"""Endpoints 1 to 5 and 10: sessions and their list."""

import asyncio

import httpx
import pytest

from app.application.services.chat import ChatRequest
from app.domain.errors import StoreUnavailable
from app.domain.models.event import DoneEvent, ErrorEvent, MessageEvent, TitleEvent
from tests.support.api_harness import API, NO_USAGE, ApiHarness
from tests.support.sse import read_frames


async def test_new_session_is_pending_and_empty(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    expected = {
        "session_id": session_id,
        "title": None,
        "status": "pending",
        "is_pinned": False,
        "is_shared": False,
        "model": "main",
        "usage": NO_USAGE,
        "events": [],
    }
    answer = await client.get(f"{API}/{session_id}")
    assert answer.json() == {"code": 0, "msg": "success", "data": expected}
    assert answer.headers["content-type"] == "application/json"


async def test_history_equals_streamed_events(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    sent = await harness.send_message(session_id, {"message": "hello"})
    events = await harness.list_events(session_id)
    assert [frame.event for frame in sent] == ["title", "message", "done"]
    assert events[1:] == [{"event": frame.event, "data": frame.data} for frame in sent]
    assert events[0]["data"]["content"] == "hello"


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ({}, range(1, 1201)),
        ({"after": "1190"}, range(1191, 1201)),
        ({"after": "", "limit": 3}, range(1, 4)),
        ({"after": "000000000600", "limit": 550}, range(601, 1151)),
        ({"tail": 5}, range(1196, 1201)),
        ({"tail": 5000}, range(1, 1201)),
        ({"after": "1200"}, range(0)),
    ],
)
async def test_long_history_is_returned_whole_or_in_requested_part(
    harness: ApiHarness, query: dict[str, str | int], numbers: range
) -> None:
    session_id = await harness.create_session()
    await harness.commit_events(session_id, *(MessageEvent(role="user", content=str(n)) for n in range(1, 1201)))
    events = await harness.list_events(session_id, **query)
    assert [int(event["data"]["event_id"]) for event in events] == list(numbers)


async def test_history_of_many_pages_is_fast(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await harness.commit_events(session_id, *(MessageEvent(role="user", content="x" * 900) for _ in range(5000)))
    data = (await client.get(f"{API}/{session_id}")).json()["data"]
    assert len(data["events"]) == 5000


@pytest.mark.parametrize("query", ["after=1", "after=x", "after=-1", "limit=0", "limit=5001", "tail=x", "tail=0"])
async def test_invalid_history_part_returns_400(harness: ApiHarness, client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"{API}/{await harness.create_session()}?{query}")
    assert answer.status_code == 400
    assert answer.json()["data"] is None


async def test_list_is_paged_with_latest_first(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    ids = [await harness.create_session() for _ in range(3)]
    first = (await client.get(API, params={"limit": 2})).json()["data"]
    second = (await client.get(API, params={"limit": 2, "cursor": first["next_cursor"]})).json()["data"]
    assert [each["session_id"] for each in (*first["sessions"], *second["sessions"])] == ids[::-1]
    assert second["next_cursor"] is None
    assert first["sessions"][0] == {
        "session_id": ids[2],
        "title": None,
        "latest_message": None,
        "latest_message_at": None,
        "status": "pending",
        "unread_message_count": 0,
        "is_pinned": False,
        "is_shared": False,
        "model": "main",
        "usage": NO_USAGE,
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=many", "cursor=%00", "cursor=nonsense"])
async def test_invalid_list_query_returns_400(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"{API}?{query}")).status_code == 400


async def test_messages_are_unread_until_chat_stream_delivers_them(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await harness.commit_events(
        session_id,
        MessageEvent(role="user", content="hi"),
        TitleEvent(title="Greeting"),
        MessageEvent(role="assistant", content="hello"),
        DoneEvent(),
    )
    [session] = (await client.get(API)).json()["data"]["sessions"]
    assert (session["unread_message_count"], session["title"], session["status"]) == (1, "Greeting", "completed")
    assert (session["latest_message"], session["latest_message_at"]) == ("hello", 1_700_000_000)
    await harness.list_events(session_id)  # reading the history does not count as delivery
    assert (await client.get(API)).json()["data"]["sessions"][0]["unread_message_count"] == 1
    await harness.send_message(session_id)
    assert (await client.get(API)).json()["data"]["sessions"][0]["unread_message_count"] == 0


@pytest.mark.parametrize("how", ["body", "header", "events endpoint", "events header"])
async def test_attach_counts_everything_up_to_its_event_id_as_delivered(
    harness: ApiHarness, live_client: httpx.AsyncClient, how: str
) -> None:
    session_id = await harness.create_session()
    events = [MessageEvent(role="assistant", content=text) for text in ("one", "two", "three")]
    await harness.commit_events(session_id, MessageEvent(role="user", content="hi"), *events, DoneEvent())
    history = (await live_client.get(f"{API}/{session_id}")).json()["data"]["events"]
    last, earlier = (history[position]["data"]["event_id"] for position in (-1, 1))
    for event_id in (last, earlier, last):
        await harness.commit_events(session_id, MessageEvent(role="user", content="go on"))
        headers = {"Last-Event-ID": event_id} if "header" in how else {}
        if how.startswith("events"):
            query = "" if headers else f"?after={event_id}"
            request = live_client.stream("GET", f"{API}/{session_id}/events{query}", headers=headers)
        else:
            body = {} if headers else {"event_id": event_id}
            request = live_client.stream("POST", f"{API}/{session_id}/chat", headers=headers, json=body)
        async with request as response:
            assert response.status_code == 200
            [session] = (await live_client.get(API)).json()["data"]["sessions"]
            assert session["unread_message_count"] == 0


async def test_stream_that_never_catches_up_still_marks_messages_read(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    await harness.commit_events(session_id, MessageEvent(role="user", content="hi"))
    items = await harness.services.chat.chat(session_id, ChatRequest(message=""), owner="")
    await anext(items)
    for event in (MessageEvent(role="assistant", content="one moment"), ErrorEvent(error="the model failed")):
        await harness.commit_events(session_id, event)
        assert await anext(items)
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    assert (await client.get(API)).json()["data"]["sessions"][0]["unread_message_count"] == 0


async def test_deleted_session_is_gone_and_second_delete_returns_404(
    harness: ApiHarness, client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    assert (await client.delete(f"{API}/{session_id}")).json() == {"code": 0, "msg": "success", "data": None}
    assert harness.sandboxes.destroyed == [session_id]
    assert (await client.delete(f"{API}/{session_id}")).status_code == 404
    assert (await client.get(f"{API}/{session_id}")).status_code == 404


async def test_failed_delete_leaves_run_active(
    harness: ApiHarness, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(session_id: str, *, owner: str) -> None:
        raise StoreUnavailable("the disk is full")

    session_id = await harness.create_session()
    harness.worker.gate.clear()
    stream = asyncio.create_task(harness.send_message(session_id, {"message": "work"}))
    await harness.worker.waiting.wait()
    harness.worker.gate.set()
    with monkeypatch.context() as patched:
        patched.setattr(harness.store, "delete", full)
        assert (await client.delete(f"{API}/{session_id}")).status_code == 503
    async with asyncio.timeout(30):
        assert (await stream)[-1].event == "done"


async def test_stop_ends_run_and_is_idempotent(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    harness.worker.gate.clear()
    stream = asyncio.create_task(harness.send_message(session_id, {"message": "work"}))
    await harness.worker.waiting.wait()
    for _ in range(2):
        assert (await client.post(f"{API}/{session_id}/stop")).json()["data"] is None
    assert [frame.event for frame in await stream] == ["title", "done"]
    assert (await client.get(f"{API}/{session_id}")).json()["data"]["status"] == "completed"


async def test_list_is_streamed_at_start_and_at_every_change(
    harness: ApiHarness, live_client: httpx.AsyncClient
) -> None:
    async with live_client.stream("POST", API) as answer:
        shown = (frame.data async for frame in read_frames(answer) if frame.event == "sessions")
        assert await anext(shown) == {"sessions": [], "next_cursor": None}
        session_id = await harness.create_session()
        assert (await anext(shown))["sessions"][0]["session_id"] == session_id
        await harness.commit_events(session_id, TitleEvent(title="Named"))
        assert (await anext(shown))["sessions"][0]["title"] == "Named"
        await harness.commit_events(session_id, MessageEvent(role="assistant", content="hello"))
        assert (await anext(shown))["sessions"][0]["unread_message_count"] == 1
        await harness.send_message(session_id)
        assert (await anext(shown))["sessions"][0]["unread_message_count"] == 0
        await live_client.delete(f"{API}/{session_id}")
        assert (await anext(shown))["sessions"] == []


STRANGE = [
    "nobody",
    "0" * 32,
    "%00",
    "a%20b",
    "%F0%9F%98%80",
    "%FF%FE",
    "..%2F..",
    "'; DROP TABLE",
    "x" * 5000,
    "%2e%2e",
]


@pytest.mark.parametrize("session_id", STRANGE)
@pytest.mark.parametrize(
    ("method", "rest", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/stop", None),
        ("POST", "/chat", {"message": "x"}),
        ("GET", "/events", None),
        ("POST", "/shell", {"session_id": "a"}),
        ("POST", "/file", {"file": "a"}),
    ],
)
async def test_unknown_session_returns_404_on_every_endpoint(
    client: httpx.AsyncClient, session_id: str, method: str, rest: str, body: object
) -> None:
    answer = await client.request(method, f"{API}/{session_id}{rest}", json=body)
    assert answer.status_code == 404
    assert answer.json()["code"] == 404
