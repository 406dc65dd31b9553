"""Published frontends of this protocol: their exact requests, and what they need in the answers."""

import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.domain.models.event import (
    DoneEvent,
    Event,
    MessageEvent,
    TitleEvent,
    ToolCalledEvent,
    ToolCallingEvent,
)
from app.domain.models.tool import OpenCall, ToolkitName, ToolResult
from tests.api.vnc_harness import VncHarness, close_reason
from tests.support.api_harness import API, ApiHarness, serve
from tests.support.eventually import eventually
from tests.support.sse import read_frames

TOOLKITS: tuple[ToolkitName, ...] = ("shell", "file", "browser", "message", "search")
SHOWN = ["message", "title", *["tool"] * 5, "done"]
ORIGIN = "https://ui.example"
UPDATE_REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800)


def pair(toolkit: ToolkitName) -> list[Event]:
    """Return both events of a call of the toolkit."""
    call = OpenCall(id=f"call_{toolkit}", toolkit=toolkit, function=f"{toolkit}_function")
    return [ToolCallingEvent.of(call), ToolCalledEvent.of(call, ToolResult(success=True, text=""))]


@pytest.fixture
async def oldest() -> AsyncIterator[ApiHarness]:
    """A service for the frontend of 2025-06-02."""
    harness = ApiHarness(wire_compat="2025-06-02")
    yield harness
    await harness.close()


async def commit_run(harness: ApiHarness) -> str:
    """Store a run with a call of every toolkit: 13 events, of which the oldest frontend is shown 8."""
    session_id = await harness.create_session()
    calls = [event for toolkit in TOOLKITS for event in pair(toolkit)]
    await harness.commit_events(session_id, MessageEvent(role="user", content="hi"), TitleEvent(title="T"), *calls)
    await harness.commit_events(session_id, DoneEvent())
    return session_id


def is_shown_once(events: list[tuple[str, dict[str, Any]]]) -> bool:
    tools = [(data["name"], data["status"]) for event, data in events if event == "tool"]
    return tools == [(name, "called" if name == "search" else "calling") for name in TOOLKITS]


async def test_oldest_frontend_receives_each_tool_call_once(oldest: ApiHarness) -> None:
    session_id = await commit_run(oldest)
    history = await oldest.list_events(session_id)
    assert [item["event"] for item in history] == SHOWN
    assert is_shown_once([(item["event"], item["data"]) for item in history])
    frames = await oldest.send_message(session_id, {"message": "", "timestamp": 1_748_800_000})
    assert [(frame.event, frame.data) for frame in frames] == [(item["event"], item["data"]) for item in history]
    async with (
        serve(oldest) as client,
        client.stream("GET", f"{API}/{session_id}/events") as response,
    ):
        followed = read_frames(response)
        assert [(await anext(followed)).data for _ in SHOWN] == [item["data"] for item in history]


async def test_ids_of_hidden_events_stay_valid_for_the_oldest_frontend(oldest: ApiHarness) -> None:
    session_id = await commit_run(oldest)
    history = await oldest.list_events(session_id)
    for number in range(1, 14):
        later = [item["data"] for item in history if int(item["data"]["event_id"]) > number]
        frames = await oldest.send_message(session_id, {"event_id": str(number)})
        assert [frame.data for frame in frames] == later
        frames = await oldest.send_message(session_id, **{"Last-Event-ID": str(number)})
        assert [frame.data for frame in frames] == later
        assert [item["data"] for item in await oldest.list_events(session_id, after=str(number))] == later


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9])
async def test_pages_for_the_oldest_frontend_are_full_until_the_last(oldest: ApiHarness, limit: int) -> None:
    session_id = await commit_run(oldest)
    history, paged = await oldest.list_events(session_id), []
    while page := await oldest.list_events(
        session_id, limit=limit, **({"after": paged[-1]["data"]["event_id"]} if paged else {})
    ):
        assert len(page) == limit or len(paged) + len(page) == len(history)
        paged += page
    assert paged == history
    assert await oldest.list_events(session_id, tail=limit) == history[-limit:]
    assert await oldest.list_events(session_id, tail=limit, limit=1) == history[-limit:][:1]


@pytest.mark.parametrize(("wire_compat", "status"), [("", "running"), ("2025-06-02", "active")])
async def test_session_with_a_run_has_the_status_that_the_frontend_knows(wire_compat: str, status: str) -> None:
    harness = ApiHarness(wire_compat=wire_compat)
    try:
        session_id = await harness.create_session()
        await harness.commit_events(session_id, MessageEvent(role="user", content="hi"))
        assert (await harness.client.get(f"{API}/{session_id}")).json()["data"]["status"] == status
        [row] = (await harness.client.get(API)).json()["data"]["sessions"]
        assert row["status"] == status
        async with serve(harness) as client, client.stream("POST", API) as response:
            assert (await anext(read_frames(response))).data["sessions"][0]["status"] == status
        await harness.commit_events(session_id, DoneEvent())
        assert (await harness.client.get(f"{API}/{session_id}")).json()["data"]["status"] == "completed"
    finally:
        await harness.close()


async def test_newer_frontends_receive_both_events_of_a_tool_call(harness: ApiHarness) -> None:
    session_id = await commit_run(harness)
    frames = await harness.send_message(session_id)
    assert [frame.number for frame in frames] == list(range(1, 14))


async def test_renamed_session_shows_its_title_everywhere(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "hello"})
    answer = await client.patch(f"{API}/{session_id}/title", json={"title": "  My\n task "})
    assert answer.json()["data"] == {"session_id": session_id, "title": "My task"}
    [row] = (await client.get(API)).json()["data"]["sessions"]
    session = (await client.get(f"{API}/{session_id}")).json()["data"]
    assert row["title"] == session["title"] == session["events"][-1]["data"]["title"] == "My task"
    assert session["events"][-1]["event"] == "title"


@pytest.mark.parametrize("body", [{}, {"title": ""}, {"title": " \n"}, {"title": 5}, {"title": "x" * 201}])
async def test_unusable_title_returns_400(harness: ApiHarness, client: httpx.AsyncClient, body: Any) -> None:
    session_id = await harness.create_session()
    answer = await client.patch(f"{API}/{session_id}/title", json=body)
    assert (answer.status_code, answer.json()["msg"][:6]) == (400, "title:")
    assert await harness.list_events(session_id) == []


async def test_pinned_session_is_marked_in_list_and_data(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    for is_pinned in (True, False):
        answer = await client.post(f"{API}/{session_id}/pin", json={"is_pinned": is_pinned})
        assert answer.json()["data"] == {"session_id": session_id, "is_pinned": is_pinned}
        [row] = (await client.get(API)).json()["data"]["sessions"]
        assert row["is_pinned"] is is_pinned
        assert (await client.get(f"{API}/{session_id}")).json()["data"]["is_pinned"] is is_pinned
    assert (await client.post(f"{API}/{session_id}/pin", json={})).status_code == 400


async def test_clear_unread_message_count_marks_everything_read(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await harness.commit_events(session_id, *[MessageEvent(role="assistant", content="m")] * 3)
    for _ in range(2):
        answer = await client.post(f"{API}/{session_id}/clear_unread_message_count")
        assert answer.json() == {"code": 0, "msg": "success", "data": None}
        [row] = (await client.get(API)).json()["data"]["sessions"]
        assert row["unread_message_count"] == 0


async def test_frontend_config_says_that_there_is_no_login(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/config/frontend")).json()["data"] == {
        "auth_provider": "none",
        "show_github_button": False,
        "github_repository_url": "",
        "google_analytics_id": "",
        "claw_enabled": False,
    }


async def test_preflight_allows_every_method_of_every_route() -> None:
    harness = ApiHarness(origins=[ORIGIN])
    paths = (await harness.client.get("/openapi.json")).json()["paths"]
    methods = {(path, method.upper()) for path, item in paths.items() for method in item}
    assert {method for _, method in methods} >= {"GET", "PUT", "PATCH", "POST", "DELETE"}
    for path, method in methods:
        answer = await harness.client.options(
            path.replace("{session_id}", "s"),
            headers={
                "Origin": ORIGIN,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type,last-event-id",
            },
        )
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN), (path, method)
    await harness.close()


async def sign(harness: VncHarness, session_id: str, **body: Any) -> str:
    """Return the signature of a new signed address."""
    answer = await harness.api.client.post(f"{API}/{session_id}/vnc/signed-url", json=body)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    data = answer.json()["data"]
    assert data["expires_in"] == 60 * body.get("expire_minutes", 15)
    address, _, signature = data["signed_url"].partition("?signature=")
    assert address == f"{API}/{session_id}/vnc"
    return signature


async def test_signed_address_opens_the_desktop_again_until_it_expires(vnc_harness: VncHarness) -> None:
    session_id, sandbox = await vnc_harness.create_session()
    signature = await sign(vnc_harness, session_id, expire_minutes=15)
    for opened in range(1, 4):
        viewer = await vnc_harness.connect_viewer(session_id, signature=signature)
        await eventually(lambda opened=opened: len(sandbox.desktops) == opened)
        sandbox.desktops[-1].outgoing.put_nowait(b"RFB 003.008\n")
        assert await viewer.recv() == b"RFB 003.008\n"
        await viewer.send(b"key")
        await eventually(lambda: bytes(sandbox.desktops[-1].received) == b"key")
        await viewer.close()
    vnc_harness.api.now += 15 * 60
    closed = await close_reason(await vnc_harness.connect_viewer(session_id, signature=signature))
    assert closed == (4401, "the signed address has expired; ask for a new one")


async def test_viewer_of_a_view_only_address_cannot_type(vnc_harness: VncHarness) -> None:
    session_id, sandbox = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id, signature=await sign(vnc_harness, session_id, view_only=True))
    await sandbox.opened.wait()
    greeting, key = b"RFB 003.008\n\x01\x01", struct.pack(">BBxxI", 4, 1, ord("x"))
    await viewer.send(greeting + key + UPDATE_REQUEST)
    await eventually(lambda: sandbox.desktops[0].received == greeting + UPDATE_REQUEST)
    await viewer.close()


async def test_signature_that_was_changed_or_is_for_another_session_is_refused(vnc_harness: VncHarness) -> None:
    session_id, _ = await vnc_harness.create_session()
    other_id, _ = await vnc_harness.create_session()
    signature = await sign(vnc_harness, session_id, view_only=True)
    end, _, rest = signature.partition(".")
    forged = (f"{int(end) + 1}.{rest}", signature.replace(".1.", ".0.", 1), signature[:-1], signature + "0", "", "x")
    for opened, given in [(other_id, signature), *((session_id, each) for each in forged)]:
        code, _ = await close_reason(await vnc_harness.connect_viewer(opened, signature=given))
        assert code == 4401


async def test_signed_address_of_a_deleted_session_is_refused(vnc_harness: VncHarness) -> None:
    session_id, _ = await vnc_harness.create_session()
    signature = await sign(vnc_harness, session_id)
    await vnc_harness.api.client.delete(f"{API}/{session_id}")
    code, _ = await close_reason(await vnc_harness.connect_viewer(session_id, signature=signature))
    assert code == 4404
    assert (await vnc_harness.api.client.post(f"{API}/{session_id}/vnc/signed-url")).status_code == 404


@pytest.mark.parametrize("minutes", [0, -1, 121, "15", 1.5])
async def test_invalid_minutes_of_a_signed_address_return_400(harness: ApiHarness, minutes: object) -> None:
    session_id = await harness.create_session()
    answer = await harness.client.post(f"{API}/{session_id}/vnc/signed-url", json={"expire_minutes": minutes})
    assert answer.status_code == 400
