"""The middleware that finds out who makes a request."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.application.context import principal_name
from app.domain.errors import Unauthorized, Unavailable
from app.domain.external.authenticator import Credentials
from app.infrastructure.logging import JsonLines
from app.interfaces.authentication import MAX_REPORTS, AuthenticationMiddleware
from tests.api.vnc_harness import VncHarness, close_reason
from tests.support.api_harness import API, ApiHarness
from tests.support.sse import read_frames

RECHECK = 0.05
ORIGIN = "https://app.example"


class Door:
    """An `Authenticator` that knows the tokens which the test leaves in `names`."""

    def __init__(self) -> None:
        self.names = {"alice-token": "alice", "admin-token": "admin"}
        self.trouble = False
        self.questions = 0

    async def authenticate(self, credentials: Credentials) -> str:
        self.questions += 1
        if self.trouble:
            raise Unavailable("the login cannot be checked now", retry_after=7)
        name = self.names.get(credentials.bearer_token())
        if name is None:
            raise Unauthorized("the token is not valid")
        return name

    async def is_known(self, name: str) -> bool:
        self.questions += 1
        return name in self.names.values()

    async def check(self) -> str | None:
        return None

    async def close(self) -> None:
        pass


ALICE = {"Authorization": "Bearer alice-token"}


@asynccontextmanager
async def serve(door: Door, *, origins: Sequence[str] = ()) -> AsyncIterator[tuple[VncHarness, httpx.AsyncClient]]:
    harness = VncHarness(api=ApiHarness(authenticator=door, origins=origins, recheck_seconds=RECHECK))
    async with harness.run(), httpx.AsyncClient(base_url=f"http://127.0.0.1:{harness.port}", timeout=20) as http:
        yield harness, http


async def create(http: httpx.AsyncClient) -> str:
    return (await http.put(API, headers=ALICE)).json()["data"]["session_id"]


async def test_open_stream_ends_regularly_when_its_token_is_removed() -> None:
    door = Door()
    async with serve(door) as (_, http):
        url = f"{API}/{await create(http)}/events"
        async with http.stream("GET", url, headers=ALICE) as stream:
            asked = door.questions
            async with asyncio.timeout(20):
                while door.questions < asked + 3:  # it goes on while the token is valid
                    await asyncio.sleep(RECHECK)
                door.trouble = True
                while door.questions < asked + 6:  # and while nobody knows
                    await asyncio.sleep(RECHECK)
                door.trouble = False
                door.names.clear()
                assert [frame async for frame in read_frames(stream)] == []
        assert (await http.get(url, headers=ALICE)).status_code == 401


async def test_stream_that_a_ticket_opened_ends_when_its_owner_is_removed() -> None:
    door = Door()
    async with serve(door) as (_, http):
        session_id = await create(http)
        tickets = [
            (await http.post("/api/v1/tickets", json={"session_id": session_id}, headers=ALICE)).json()["data"][
                "ticket"
            ]
            for _ in range(2)
        ]
        url = f"{API}/{session_id}/events"
        async with http.stream("GET", url, params={"ticket": tickets[0]}) as stream:
            assert stream.status_code == 200
            door.names.clear()
            async with asyncio.timeout(20):
                assert [frame async for frame in read_frames(stream)] == []
        assert (await http.get(url, params={"ticket": tickets[1]})).status_code == 401


async def test_desktop_closes_with_4401_when_its_token_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    async with serve(door) as (harness, http):
        session_id = await create(http)
        viewer = await harness.connect_viewer(session_id, additional_headers=ALICE)
        door.names.clear()
        assert await close_reason(viewer) == (4401, "the login has ended")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_signed_address_of_a_removed_owner_opens_nothing() -> None:
    door = Door()
    async with serve(door) as (harness, http):
        session_id = await create(http)
        answer = await http.post(f"{API}/{session_id}/vnc/signed-url", json={}, headers=ALICE)
        door.names.clear()
        signature = answer.json()["data"]["signed_url"].partition("signature=")[2]
        viewer = await harness.connect_viewer(session_id, signature=signature)
        assert (await close_reason(viewer))[0] == 4401


async def test_request_that_cannot_be_checked_gets_503_with_retry_after() -> None:
    door = Door()
    door.trouble = True
    async with serve(door) as (_, http):
        answer = await http.get(API, headers=ALICE)
        assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (503, "7", 503)
        assert (await http.get("/health")).status_code == 200


async def test_preflight_needs_no_login_and_a_page_can_read_the_refusal() -> None:
    async with serve(Door(), origins=[ORIGIN]) as (_, http):
        asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
        preflight = await http.options(API, headers={**asked, "Access-Control-Request-Headers": "authorization"})
        assert preflight.status_code == 200
        refused = await http.get(API, headers={"Origin": ORIGIN})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


async def test_large_body_without_a_login_gets_401() -> None:
    async with serve(Door()) as (_, http):
        assert (await http.post(f"{API}/x/chat", content=b"x" * 3_000_000)).status_code == 401
        assert (await http.get("/health")).status_code == 200


async def bare_request(middleware: AuthenticationMiddleware, **headers: str) -> int:
    """Send a request to the middleware alone; return the status."""
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": encoded}
    await middleware({**scope, "client": ("192.0.2.7", 1)}, receive, send)
    return statuses[0]


async def test_every_refused_login_is_reported_and_a_flood_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it must not be reached")

    reported: list[tuple[str, str]] = []
    middleware = AuthenticationMiddleware(
        nothing, authenticator=Door(), on_refused=lambda reason, client: reported.append((reason, client))
    )
    caplog.set_level(logging.DEBUG)
    for _ in range(500):
        assert await bare_request(middleware, Authorization="Bearer canary-token") == 401
    assert reported == [("the token is not valid", "192.0.2.7")] * 500
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert len(lines) == MAX_REPORTS
    assert (lines[0]["event"], lines[0]["client"]) == ("login refused", "192.0.2.7")
    assert "canary" not in json.dumps(lines)


async def test_name_of_the_principal_is_bound_only_during_the_request() -> None:
    names: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        names.append(principal_name.get())
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    middleware = AuthenticationMiddleware(app, authenticator=Door())
    assert await bare_request(middleware, **ALICE) == 204
    assert await bare_request(middleware, Authorization="Bearer admin-token") == 204
    assert (names, principal_name.get()) == (["alice", "admin"], "")
