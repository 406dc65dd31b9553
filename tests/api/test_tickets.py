"""Endpoint 14, and the endpoints that its tickets open."""

import asyncio
import json
import logging
import struct
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from app.domain.repositories.tickets import MAX_TICKETS
from app.infrastructure.logging import JsonLines
from tests.api.vnc_harness import VncHarness, close_reason
from tests.support.api_harness import API, ApiHarness
from tests.support.eventually import eventually
from tests.support.sse import read_frames

TICKETS = "/api/v1/tickets"
GREETING = b"RFB 003.008\n\x01\x01"
REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800)
KEY = struct.pack(">BBxxI", 4, 1, ord("x"))
USED_UP = (4401, "the ticket opens nothing here: it is used up, expired, or for another session")


async def issue(harness: ApiHarness, session_id: str, **more: Any) -> str:
    answer = await harness.client.post(TICKETS, json={"session_id": session_id, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["ticket"]


async def events(
    live_client: httpx.AsyncClient, session_id: str, ticket: str, **query: Any
) -> tuple[int, dict[str, Any]]:
    """Return the status of endpoint 11, and the body of a failure. Disconnect from a stream immediately."""
    async with live_client.stream("GET", f"{API}/{session_id}/events", params={"ticket": ticket, **query}) as answer:
        return answer.status_code, {} if answer.status_code == 200 else json.loads(await answer.aread())


async def test_ticket_is_random_uncacheable_and_has_expiry(harness: ApiHarness) -> None:
    answer = await harness.client.post(TICKETS, json={"session_id": await harness.create_session(), "view_only": True})
    data = answer.json()["data"]
    assert data.keys() == {"ticket", "expires_at"}
    assert data["expires_at"] == 1_700_000_030
    assert len(data["ticket"]) == 32
    assert answer.headers["cache-control"] == "no-store"
    assert [each for each in harness.tickets.kept if data["ticket"] in each] == []


async def test_ticket_opens_events_of_its_session_once(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "hello"})
    ticket = await issue(harness, session_id)
    async with live_client.stream("GET", f"{API}/{session_id}/events", params={"ticket": ticket}) as answer:
        assert answer.status_code == 200
        seen = await anext(read_frames(answer))
        assert seen.data["content"] == "hello"
    answer = await live_client.get(f"{API}/{session_id}/events", params={"ticket": ticket})
    assert answer.json() == {"code": 401, "msg": USED_UP[1], "data": None}
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("ticket", ["", "x", "x" * 32, "x" * 10_000, "é\x00", "'; DROP TABLE tickets"])
async def test_invalid_ticket_returns_401(harness: ApiHarness, live_client: httpx.AsyncClient, ticket: str) -> None:
    status, body = await events(live_client, await harness.create_session(), ticket)
    assert (status, body["code"]) == (401, 401)
    assert len(ticket) < 3 or ticket not in body["msg"]


async def test_concurrent_requests_redeem_ticket_once(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    ticket = await issue(harness, session_id)
    found = await asyncio.gather(*(events(live_client, session_id, ticket) for _ in range(20)))
    assert sorted(status for status, _ in found) == [200] + [401] * 19


async def test_ticket_expires_after_thirty_seconds(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    early, late = await issue(harness, session_id), await issue(harness, session_id)
    harness.now += 29.9
    assert (await events(live_client, session_id, early))[0] == 200
    harness.now += 0.1
    assert (await events(live_client, session_id, late))[0] == 401


async def test_malformed_request_does_not_use_up_ticket(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id, other = await harness.create_session(), await harness.create_session()
    ticket = await issue(harness, session_id)
    assert (await events(live_client, other, ticket))[0] == 401
    assert (await events(live_client, "x" * 65, ticket))[0] == 404
    assert (await events(live_client, session_id, ticket, after="nonsense"))[0] == 400
    assert (await events(live_client, session_id, ticket))[0] == 200


async def test_deleting_session_deletes_its_tickets(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    session_id = await harness.create_session()
    ticket = await issue(harness, session_id)
    await harness.client.delete(f"{API}/{session_id}")
    assert (await events(live_client, session_id, ticket))[0] == 401
    assert (await harness.client.post(TICKETS, json={"session_id": session_id})).status_code == 404


async def test_request_without_ticket_still_works(harness: ApiHarness, live_client: httpx.AsyncClient) -> None:
    async with live_client.stream("GET", f"{API}/{await harness.create_session()}/events") as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[]", 400),
        (b'{"session_id": 1}', 400),
        (b'{"session_id": null}', 400),
        (b'{"session_id": ""}', 404),
        (b'{"session_id": "nobody"}', 404),
        (b'{"session_id": "../x"}', 404),
        (b'{"session_id": "nobody", "view_only": "yes"}', 400),
    ],
)
async def test_ticket_for_invalid_session_is_refused(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    answer = await client.post(TICKETS, content=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["data"]) == (status, status, None)


async def test_too_many_unused_tickets_return_429(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    for _ in range(MAX_TICKETS):
        await issue(harness, session_id)
    harness.now += 12
    answer = await harness.client.post(TICKETS, json={"session_id": session_id})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "18"
    harness.now += 18
    await issue(harness, session_id)


async def test_unavailable_store_returns_503_and_keeps_ticket(
    harness: ApiHarness, live_client: httpx.AsyncClient
) -> None:
    session_id = await harness.create_session()
    ticket = await issue(harness, session_id)
    harness.store.trouble = "the disk is full"
    assert (await harness.client.post(TICKETS, json={"session_id": session_id})).status_code == 503
    assert (await events(live_client, session_id, ticket))[0] == 503
    harness.store.trouble = None
    assert (await events(live_client, session_id, ticket))[0] == 200


async def test_ticket_opens_desktop_once_with_full_access(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    ticket = await issue(vnc_harness.api, session_id)
    viewer = await vnc_harness.connect_viewer(session_id, ticket=ticket)
    await screen.opened.wait()
    await viewer.send(GREETING + KEY + b"anything at all")
    await eventually(lambda: screen.desktops[0].received == GREETING + KEY + b"anything at all")
    assert await close_reason(await vnc_harness.connect_viewer(session_id, ticket=ticket)) == USED_UP
    await viewer.close()


async def test_invalid_ticket_starts_no_sandbox(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    other, _ = await vnc_harness.create_session()
    for ticket in ("", "wrong", await issue(vnc_harness.api, other)):
        assert await close_reason(await vnc_harness.connect_viewer(session_id, ticket=ticket)) == USED_UP
    assert not screen.opened.is_set()
    assert vnc_harness.viewers == 0


async def test_view_only_viewer_sees_desktop_and_changes_nothing(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(
        session_id, ticket=await issue(vnc_harness.api, session_id, view_only=True)
    )
    await screen.opened.wait()
    (desktop,) = screen.desktops
    desktop.outgoing.put_nowait(b"RFB 003.008\n")
    assert await viewer.recv() == b"RFB 003.008\n"
    for byte in GREETING + KEY + REQUEST + KEY:
        await viewer.send(bytes([byte]))
    await viewer.send(KEY * 1000 + REQUEST + KEY)
    await eventually(lambda: desktop.received == GREETING + REQUEST * 2)
    desktop.outgoing.put_nowait(b"\x00pixels")
    assert await viewer.recv() == b"\x00pixels"
    await viewer.close()
    await desktop.closed.wait()
    assert desktop.received == GREETING + REQUEST * 2


async def test_view_only_input_before_desktop_is_ready_is_filtered(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.may_start.clear()
    viewer = await vnc_harness.connect_viewer(
        session_id, ticket=await issue(vnc_harness.api, session_id, view_only=True)
    )
    await viewer.send(GREETING + KEY + REQUEST[:5])
    await (await viewer.ping())
    vnc_harness.api.sandboxes.may_start.set()
    await screen.opened.wait()
    await viewer.send(REQUEST[5:] + KEY)
    await eventually(lambda: screen.desktops[0].received == GREETING + REQUEST)
    await viewer.close()


async def test_view_only_viewer_with_unknown_message_is_closed(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(
        session_id, ticket=await issue(vnc_harness.api, session_id, view_only=True)
    )
    await screen.opened.wait()
    await viewer.send(GREETING + REQUEST + b"\x07" + REQUEST)
    code, reason = await close_reason(viewer)
    assert code == 1008
    assert reason == "the ticket is for watching only: messages of the unknown type 7 are not let through"
    await screen.desktops[0].closed.wait()
    assert REQUEST * 2 not in screen.desktops[0].received


async def test_view_only_and_full_viewer_share_desktop(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    watcher = await vnc_harness.connect_viewer(
        session_id, ticket=await issue(vnc_harness.api, session_id, view_only=True)
    )
    await eventually(lambda: len(screen.desktops) == 1)
    worker = await vnc_harness.connect_viewer(session_id)
    await eventually(lambda: len(screen.desktops) == 2)
    for viewer in (watcher, worker):
        await viewer.send(GREETING + KEY + REQUEST)
    await eventually(lambda: screen.desktops[1].received == GREETING + KEY + REQUEST)
    await eventually(lambda: screen.desktops[0].received == GREETING + REQUEST)
    await vnc_harness.api.client.delete(f"{API}/{session_id}")
    assert await close_reason(watcher) == (4410, "the session was deleted")
    with pytest.raises(ConnectionClosed):
        await worker.recv()


async def test_tickets_are_never_logged(vnc_harness: VncHarness, caplog: pytest.LogCaptureFixture) -> None:
    session_id, screen = await vnc_harness.create_session()
    with caplog.at_level(logging.DEBUG):
        for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            caplog.set_level(logging.DEBUG, logger=name)
        tickets = [await issue(vnc_harness.api, session_id) for _ in range(3)]
        viewer = await vnc_harness.connect_viewer(session_id, ticket=tickets[0])
        await screen.opened.wait()
        await viewer.close()
        await close_reason(await vnc_harness.connect_viewer(session_id, ticket=tickets[0]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{vnc_harness.port}") as client:
            assert (await events(client, session_id, tickets[1]))[0] == 200
            assert (await events(client, session_id, tickets[1]))[0] == 401
            assert (await events(client, session_id, tickets[2], after="x"))[0] == 400
        await eventually(lambda: vnc_harness.viewers == 0)
    ours = [record for record in caplog.records if not record.name.startswith(("websockets", "httpcore", "httpx"))]
    lines = "\n".join(map(JsonLines().format, ours))
    assert "a viewer of the desktop ended" in lines
    assert '"request"' in lines
    for ticket in tickets:
        assert ticket not in lines
