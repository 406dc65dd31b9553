"""What the API records in the audit log, generated from the route table so that no new route is forgotten."""

import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from websockets.exceptions import InvalidStatus

from app.application.services.audit import OTHERS, AuditTrail, read_all
from app.domain.models.event import WaitEvent
from app.infrastructure.auth.tokens import TokenLogin
from app.main import ROUTERS, create_app
from app.providers import choose_store
from app.settings import load_settings
from tests.api.vnc_harness import VncHarness, close_reason
from tests.support.api_harness import API, ApiHarness
from tests.support.eventually import eventually

Request = Callable[[ApiHarness, str], Awaitable[object]]


def post(path: str, body: dict[str, object] | None = None) -> Request:
    return lambda harness, session_id: harness.client.post(
        path.format(session_id=session_id), json=json.loads(json.dumps(body or {}).replace("SESSION", session_id))
    )


async def stop_waiting_run(harness: ApiHarness, session_id: str) -> None:
    await harness.commit_events(session_id, WaitEvent())
    await harness.client.post(f"{API}/{session_id}/stop")


S = f"{API}/{{session_id}}"

ACTIONS: dict[tuple[str, str], tuple[str, Request]] = {
    ("PUT", API): ("session.create", lambda harness, _: harness.client.put(API)),
    ("DELETE", S): ("session.delete", lambda harness, session_id: harness.client.delete(f"{API}/{session_id}")),
    ("POST", f"{S}/stop"): ("session.stop", stop_waiting_run),
    ("PATCH", f"{S}/title"): (
        "session.rename",
        lambda harness, session_id: harness.client.patch(f"{API}/{session_id}/title", json={"title": "New"}),
    ),
    ("POST", f"{S}/pin"): ("session.pin", post(f"{S}/pin", {"is_pinned": True})),
    ("POST", f"{S}/chat"): ("message.send", post(f"{S}/chat", {"message": "Hello"})),
    ("POST", f"{S}/shell"): ("shell.view", post(f"{S}/shell", {"session_id": "main"})),
    ("POST", f"{S}/file"): ("file.read", post(f"{S}/file", {"file": "notes.md"})),
    ("POST", "/api/v1/tickets"): ("ticket.issue", post("/api/v1/tickets", {"session_id": "SESSION"})),
    ("POST", f"{S}/vnc/signed-url"): ("desktop.sign", post(f"{S}/vnc/signed-url")),
}
"""The recorded action of each route that can change something, and a request that makes it."""

NOT_RECORDED = {
    **{
        ("POST", f"/api/v1/admin/{path}"): "records session.stop and session.assign, see the test of administrators"
        for path in ("sessions/assign", "sessions/{session_id}/stop", "stop")
    },
    ("POST", API): "reads the list of sessions",
    ("POST", f"{S}/clear_unread_message_count"): "bookkeeping of reading, which no stream records either",
}

CHANGING = [
    (method, route.path)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
    if method not in ("GET", "HEAD")
]


def actions(harness: ApiHarness) -> list[str]:
    return [entry.action for entry in harness.audit_log.entries]


@pytest.mark.parametrize("route", CHANGING, ids=" ".join)
async def test_every_changing_route_records_its_action_on_the_session(
    harness: ApiHarness, route: tuple[str, str]
) -> None:
    assert route in ACTIONS or route in NOT_RECORDED, "add the route to ACTIONS, and its use case to the audit log"
    if route in NOT_RECORDED:
        return
    session_id = await harness.create_session()
    action, request = ACTIONS[route]
    await request(harness, session_id)
    entry = harness.audit_log.entries[-1]
    assert (entry.action, entry.outcome) == (action, "accepted")
    assert entry.session_id and (action == "session.create" or entry.session_id == session_id)
    assert entry.request_id and entry.client == "127.0.0.1" and entry.at.endswith("Z")


@pytest.mark.parametrize("route", [route for route in ACTIONS if "session_id" in route[1]], ids=" ".join)
async def test_request_for_a_missing_session_records_nothing(harness: ApiHarness, route: tuple[str, str]) -> None:
    method, path = route
    body = {"message": "x", "session_id": "main", "file": "a", "title": "New", "is_pinned": True}
    response = await harness.client.request(method, path.format(session_id="missing"), json=body)
    assert (response.status_code, actions(harness)) == (404, [])


@pytest.mark.parametrize("route", [route for route in ACTIONS if route[1] != f"{S}/stop"], ids=" ".join)
async def test_action_whose_record_cannot_be_stored_is_not_carried_out(
    harness: ApiHarness, route: tuple[str, str]
) -> None:
    session_id = await harness.create_session()
    before = await harness.store.get(session_id, owner="")
    harness.audit_log.trouble = "the disk is full"
    response = await ACTIONS[route][1](harness, session_id)
    assert response.status_code == 503  # type: ignore[attr-defined]
    assert await harness.store.get(session_id, owner="") == before
    assert len(await harness.store.list_ids()) == 1


async def test_message_is_recorded_by_hash_and_length_without_its_text(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "my secret plan"}, **{"Idempotency-Key": "k1"})
    details = harness.audit_log.entries[-1].details
    assert details["message_sha256"] == sha256(b"my secret plan").hexdigest()
    assert (details["length"], details["follows_event"]) == (14, 0)
    stored = b"".join(record.data for record in harness.audit_log.records)
    assert b"secret" not in stored and b"k1" not in stored


async def test_message_repeated_with_its_key_is_recorded_once(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    for text, key in (("Hello", "k1"), ("Hello", "k1"), ("another text", "k1"), ("Hello", "k2")):
        await harness.send_message(session_id, {"message": text}, **{"Idempotency-Key": key})
    sent = [entry.details for entry in harness.audit_log.entries if entry.action == "message.send"]
    assert [each["key_sha256"] for each in sent] == [sha256(key).hexdigest() for key in (b"k1", b"k2")]
    messages = [event for event in await harness.list_events(session_id) if event["event"] == "message"]
    assert len([event for event in messages if event["data"]["role"] == "user"]) == len(sent)


async def test_attaching_and_reading_record_nothing(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    await harness.send_message(session_id, {"message": "Hello"})
    before = actions(harness)
    await harness.send_message(session_id)
    await harness.client.get(API)
    await harness.client.get(f"{API}/{session_id}")
    await harness.client.post(f"{API}/{session_id}/stop")  # nothing runs
    await harness.client.post(f"{API}/{session_id}/pin", json={"is_pinned": False})  # it is not pinned
    assert actions(harness) == before


async def test_repeated_look_at_a_file_is_one_record(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    for path in ("a.txt", "b.txt", "a.txt", "a.txt"):
        await harness.client.post(f"{API}/{session_id}/file", json={"file": path})
    assert actions(harness) == ["session.create", "file.read", "file.read"]
    assert b"a.txt" not in b"".join(record.data for record in harness.audit_log.records)


async def test_failed_action_is_recorded_again_with_its_error(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = await harness.create_session()

    async def refuse(*_: object, **__: object) -> None:
        harness.store.trouble = "no primary"
        harness.store.check_trouble()

    monkeypatch.setattr(harness.store, "delete", refuse)
    harness.audit_log.ignores_store = True
    response = await harness.client.delete(f"{API}/{session_id}")
    harness.store.trouble = None
    assert response.status_code == 503
    accepted, failed = harness.audit_log.entries[-2:]
    assert (accepted.outcome, failed.outcome, failed.action) == ("accepted", "failed", "session.delete")
    assert failed.details == {"error": "StoreUnavailable", "record": 2}


async def test_redeemed_ticket_is_recorded_for_its_owner(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    await harness.client.post("/api/v1/tickets", json={"session_id": session_id, "view_only": True})
    ticket = (await harness.client.post("/api/v1/tickets", json={"session_id": session_id})).json()["data"]["ticket"]
    await harness.services.tickets.redeem(ticket, session_id=session_id)
    assert actions(harness) == ["session.create", "ticket.issue", "ticket.issue", "ticket.redeem"]
    assert ticket.encode() not in b"".join(record.data for record in harness.audit_log.records)


async def test_flood_of_refused_logins_becomes_few_records(harness: ApiHarness) -> None:
    trail = AuditTrail(harness.audit_log, refusal_seconds=0.01)
    for number in range(10_000):
        trail.count_refused_login(f"192.0.2.{number % 200}")
    await eventually(lambda: harness.audit_log.entries)
    await trail.close()
    entries = harness.audit_log.entries
    assert {(entry.action, entry.outcome) for entry in entries} == {("login.refused", "refused")}
    assert len(entries) == 21 and sum(int(entry.details["count"]) for entry in entries) == 10_000
    assert OTHERS in {entry.client for entry in entries}


async def test_refused_logins_are_recorded_when_the_service_ends(harness: ApiHarness) -> None:
    harness.audit.count_refused_login("192.0.2.1")
    await harness.audit.close()
    assert [(entry.action, entry.client) for entry in harness.audit_log.entries] == [("login.refused", "192.0.2.1")]


async def test_refused_tickets_are_recorded_as_refused_logins(vnc_harness: VncHarness) -> None:
    api = vnc_harness.api
    (session_id, _), other = await vnc_harness.create_session(), await api.create_session()
    used, late, for_other = [await issue_ticket(api, each) for each in (session_id, session_id, other)]
    await api.services.tickets.redeem(used, session_id=session_id)
    tickets = (used, for_other, "x" * 32, "")
    recorded = len(api.audit_log.entries)
    for ticket in tickets:
        await assert_refused(vnc_harness, session_id, ticket)
    api.now += 31
    await assert_refused(vnc_harness, session_id, late)
    await api.audit.close()
    entries = api.audit_log.entries[recorded:]
    assert [(entry.action, entry.outcome, entry.client) for entry in entries] == [
        ("login.refused", "refused", "127.0.0.1")
    ]
    assert entries[0].details == {"count": 3 * (len(tickets) + 1)}


async def issue_ticket(harness: ApiHarness, session_id: str) -> str:
    response = await harness.client.post("/api/v1/tickets", json={"session_id": session_id})
    return response.json()["data"]["ticket"]


async def assert_refused(harness: VncHarness, session_id: str, ticket: str) -> None:
    """Check that a ticket opens neither events nor the export nor the desktop."""
    for path in ("events", "export"):
        response = await harness.api.client.get(f"{API}/{session_id}/{path}", params={"ticket": ticket})
        assert response.status_code == 401
    assert (await close_reason(await harness.connect_viewer(session_id, ticket=ticket)))[0] == 4401


async def test_refused_websockets_are_recorded_as_refused_logins() -> None:
    harness = VncHarness(api=ApiHarness(authenticator=TokenLogin("ann:ann-token-0123456789")))
    async with harness.run():
        for header in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus):
                await harness.connect_viewer("a" * 32, additional_headers=header)
        assert (await close_reason(await harness.connect_viewer("a" * 32, signature="1.0.YQ.00")))[0] == 4401
        await harness.api.audit.close()
    assert [(entry.action, entry.details) for entry in harness.api.audit_log.entries] == [
        ("login.refused", {"count": 3})
    ]


async def test_head_is_logged_with_the_first_record_and_at_the_end(
    harness: ApiHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app.application.services.audit")
    for _ in range(3):
        await harness.create_session()
    await harness.audit.close()
    heads = [record.__dict__["head"] for record in caplog.records if "head" in record.__dict__]
    records = harness.audit_log.records
    assert heads == [f"{record.number}:{record.hash}" for record in (records[0], records[2])]


async def test_refused_login_of_a_request_is_recorded(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path / "data", api_tokens="ann:0123456789abcdef", sandbox_provider="local")
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for token in ("wrong", "0123456789abcdef"):
                await client.put(API, headers={"Authorization": f"Bearer {token}"})
    async with choose_store(settings).reading() as store:
        records = [json.loads(record.data) async for record in read_all(store.audit)]
    assert [(each["action"], each["actor"]) for each in records] == [("session.create", "ann"), ("login.refused", "")]
    assert records[1]["client"] == "127.0.0.1" and records[1]["details"] == {"count": 1}


async def test_actions_of_an_administrator_are_recorded_in_their_name() -> None:
    tokens = {name: f"{name}-token-0123456789" for name in ("ann", "admin")}
    login = TokenLogin(",".join(f"{name}:{token}" for name, token in tokens.items()))
    harness = ApiHarness(authenticator=login)
    headers = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
    created = await harness.client.put(API, headers=headers["ann"])
    session_id = created.json()["data"]["session_id"]
    await harness.commit_events(session_id, WaitEvent())
    await harness.client.post(f"/api/v1/admin/sessions/{session_id}/stop", headers=headers["admin"])
    await harness.client.post("/api/v1/admin/sessions/assign", json={"owner": "ann"}, headers=headers["admin"])
    entries = [(entry.action, entry.actor, entry.owner) for entry in harness.audit_log.entries]
    assert entries[1:] == [("session.stop", "admin", "ann"), ("session.assign", "admin", "ann")]
    await harness.close()
