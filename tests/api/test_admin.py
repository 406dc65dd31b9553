"""Endpoints of administrators."""

from collections.abc import AsyncIterator

import httpx
import pytest

from app.domain.models.event import DoneEvent
from app.infrastructure.auth.tokens import TokenLogin
from tests.support.api_harness import API, ApiHarness

ADMIN = "/api/v1/admin"
TOKENS = {name: f"{name}-token-0123456789" for name in ("alice", "bob", "admin")}


def login(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@pytest.fixture
async def guarded() -> AsyncIterator[ApiHarness]:
    """A service with logins, of which `admin` is an administrator."""
    setting = ",".join(f"{name}:{token}" for name, token in TOKENS.items())
    harness = ApiHarness(authenticator=TokenLogin(setting))
    yield harness
    await harness.close()


async def start_run(harness: ApiHarness, name: str) -> str:
    """Create a session of `name` with a run that waits at the gate of the worker."""
    session_id = (await harness.client.put(API, headers=login(name))).json()["data"]["session_id"]
    await harness.store.append_user_message(session_id, "work", at=1, key=None)
    await harness.queue.wake(session_id, up_to=1, owner=name)
    await harness.worker.waiting.wait()
    harness.worker.waiting.clear()
    return session_id


async def status(harness: ApiHarness, session_id: str) -> str:
    return (await harness.store.get_any(session_id)).status


async def test_pages_hold_the_sessions_of_everybody_once(guarded: ApiHarness) -> None:
    created = [
        (await guarded.client.put(API, headers=login(name))).json()["data"]["session_id"]
        for name in ("alice", "bob", "alice", "admin", "bob")
    ]
    found: list[tuple[str, str]] = []
    cursor = ""
    while cursor is not None:
        query = {"limit": 2, "cursor": cursor}
        data = (await guarded.client.get(f"{ADMIN}/sessions", params=query, headers=login("admin"))).json()["data"]
        found += [(session["session_id"], session["owner"]) for session in data["sessions"]]
        cursor = data["next_cursor"]
    assert found == list(zip(created, ("alice", "bob", "alice", "admin", "bob"), strict=True))[::-1]
    broken = await guarded.client.get(f"{ADMIN}/sessions", params={"cursor": "x"}, headers=login("admin"))
    assert broken.status_code == 400


async def test_administrator_stops_one_run_of_anybody(guarded: ApiHarness) -> None:
    guarded.worker.gate.clear()
    first, second = await start_run(guarded, "alice"), await start_run(guarded, "bob")
    for _ in range(2):
        stopped = await guarded.client.post(f"{ADMIN}/sessions/{first}/stop", headers=login("admin"))
        assert (stopped.status_code, stopped.json()["data"]) == (200, None)
    assert (await status(guarded, first), await status(guarded, second)) == ("completed", "running")
    missing = await guarded.client.post(f"{ADMIN}/sessions/none/stop", headers=login("admin"))
    assert missing.status_code == 404


async def test_administrator_stops_all_runs(guarded: ApiHarness) -> None:
    guarded.worker.gate.clear()
    sessions = [await start_run(guarded, name) for name in ("alice", "bob", "admin")]
    stopped = await guarded.client.post(f"{ADMIN}/stop", headers=login("admin"))
    assert stopped.json()["data"] == {"count": 3}
    assert [await status(guarded, session_id) for session_id in sessions] == ["completed"] * 3
    again = await guarded.client.post(f"{ADMIN}/stop", headers=login("admin"))
    assert again.json()["data"] == {"count": 0}


async def test_store_that_is_away_returns_503(guarded: ApiHarness) -> None:
    guarded.store.trouble = "the disk is full"
    for method, path in (("GET", "sessions"), ("POST", "stop"), ("POST", "sessions/x/stop")):
        assert (await guarded.client.request(method, f"{ADMIN}/{path}", headers=login("admin"))).status_code == 503


async def test_sessions_from_before_logins_belong_to_nobody_until_they_are_assigned(guarded: ApiHarness) -> None:
    await guarded.store.create("old", owner="", at=1)
    await guarded.commit_events("old", DoneEvent())
    for name in TOKENS:
        assert (await guarded.client.get(f"{API}/old", headers=login(name))).status_code == 404
    for owner in ("", " ", "a\nb", "x" * 256, 5):
        answer = await guarded.client.post(f"{ADMIN}/sessions/assign", json={"owner": owner}, headers=login("admin"))
        assert answer.status_code == 400
    for count in (1, 0):
        body = {"owner": "alice"}
        answer = await guarded.client.post(f"{ADMIN}/sessions/assign", json=body, headers=login("admin"))
        assert answer.json()["data"] == {"count": count}
    reached = {name: (await guarded.client.get(f"{API}/old", headers=login(name))).status_code for name in TOKENS}
    assert reached == {"alice": 200, "bob": 404, "admin": 404}


async def test_nobody_is_an_administrator_without_a_login(client: httpx.AsyncClient) -> None:
    for method, path in (
        ("GET", "sessions"),
        ("POST", "stop"),
        ("POST", "sessions/x/stop"),
        ("POST", "sessions/assign"),
    ):
        answer = await client.request(method, f"{ADMIN}/{path}")
        assert answer.status_code == 403
        assert answer.json() == {"code": 403, "msg": "only an administrator may do this; see AUTH_ADMINS", "data": None}
