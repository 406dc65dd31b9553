"""Two tenants on every route with every method: what belongs to one does not exist for the other.

The routes come from the application. A route that `ROUTES` does not list fails `test_every_route_is_listed`.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import BaseRoute
from websockets.exceptions import InvalidStatus

from app.infrastructure.auth.tokens import TokenLogin
from app.main import ROUTERS
from tests.api.vnc_harness import DesktopSandbox, VncHarness, close_reason
from tests.support.api_harness import API, ApiHarness
from tests.support.sse import read_frames

TOKENS = {name: f"{name}-token-0123456789" for name in ("alice", "bob", "admin")}
JPEG = b"\xff\xd8\xff\xe0 a screenshot"
NOBODY: Mapping[str, Mapping[str, str]] = {
    "nothing": {},
    "wrong token": {"Authorization": "Bearer not-a-token-0123456789"},
    "name as token": {"Authorization": "Bearer alice"},
    "empty": {"Authorization": "Bearer"},
    "basic": {"Authorization": "Basic YWxpY2U6YWxpY2UtdG9rZW4tMDEyMzQ1Njc4OQ=="},
    "header of a proxy": {"X-Forwarded-User": "alice", "X-Forwarded-For": "127.0.0.1"},
    "cookie": {"Cookie": f"token={TOKENS['alice']}"},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Reach(Enum):
    """Who reaches what a route serves."""

    OPEN = "everybody"
    SHARED = "everybody with a login; it has nothing of a session"
    OWN = "everybody with a login, each their own"
    SESSION = "the owner of the session"
    ADMIN = "administrators"


@dataclass(frozen=True)
class Case:
    """How to call a route. `{id}` in the body is replaced by the session's id."""

    reach: Reach
    body: Any = None
    own_status: int = 200
    """Status of the owner's call."""


ROUTES: Mapping[tuple[str, str], Case] = {
    ("GET", "/health"): Case(Reach.OPEN),
    ("GET", "/ready"): Case(Reach.SHARED),
    ("GET", "/metrics"): Case(Reach.SHARED),
    ("GET", "/docs"): Case(Reach.SHARED),
    ("GET", "/redoc"): Case(Reach.SHARED),
    ("GET", "/docs/assets/{name}"): Case(Reach.SHARED),
    ("GET", "/api/v1/models"): Case(Reach.SHARED),
    ("GET", "/api/v1/config/frontend"): Case(Reach.SHARED),
    ("PUT", API): Case(Reach.OWN),
    ("GET", API): Case(Reach.OWN),
    ("POST", API): Case(Reach.OWN),
    ("GET", API + "/{session_id}"): Case(Reach.SESSION),
    ("DELETE", API + "/{session_id}"): Case(Reach.SESSION),
    ("POST", API + "/{session_id}/stop"): Case(Reach.SESSION),
    ("PATCH", API + "/{session_id}/title"): Case(Reach.SESSION, {"title": "T"}),
    ("POST", API + "/{session_id}/pin"): Case(Reach.SESSION, {"is_pinned": True}),
    ("POST", API + "/{session_id}/clear_unread_message_count"): Case(Reach.SESSION),
    ("POST", API + "/{session_id}/chat"): Case(Reach.SESSION, {"message": "hello"}),
    ("GET", API + "/{session_id}/events"): Case(Reach.SESSION),
    ("GET", API + "/{session_id}/export"): Case(Reach.SESSION),
    ("POST", API + "/{session_id}/shell"): Case(Reach.SESSION, {"session_id": "main"}),
    ("POST", API + "/{session_id}/file"): Case(Reach.SESSION, {"file": "notes.md"}),
    ("GET", API + "/{session_id}/pictures/{picture_id}"): Case(Reach.SESSION),
    ("GET", "/api/v1/admin/sessions"): Case(Reach.ADMIN),
    ("POST", "/api/v1/admin/sessions/assign"): Case(Reach.ADMIN, {"owner": "carol"}),
    ("POST", "/api/v1/admin/sessions/{session_id}/stop"): Case(Reach.ADMIN),
    ("POST", "/api/v1/admin/stop"): Case(Reach.ADMIN),
    ("GET", API + "/{session_id}/vnc"): Case(Reach.SHARED, own_status=426),
    ("POST", API + "/{session_id}/vnc/signed-url"): Case(Reach.SESSION, {}),
    ("POST", "/api/v1/tickets"): Case(Reach.SESSION, {"session_id": "{id}"}),
}

WEBSOCKETS = frozenset({API + "/{session_id}/vnc", "/{path:path}"})
"""WebSockets that a test below opens."""

GHOST = "0" * 32
"""A session id that was never issued."""


def declared_routes() -> list[BaseRoute]:
    return [route for router in ROUTERS for route in router.routes]


def declared_calls() -> set[tuple[str, str]]:
    """Return method and path of every HTTP route."""
    found: set[tuple[str, str]] = set()
    for route in declared_routes():
        if isinstance(route, APIRoute):
            found |= {(method, route.path) for method in route.methods}
        else:
            assert isinstance(route, APIWebSocketRoute), f"a route of an unknown kind: {route}"
    return found


PATHS = sorted({path for _, path in declared_calls()} | {"/openapi.json", "/nothing", "/api/v1/nothing", "/"})
SESSION_CALLS = sorted(call for call, case in ROUTES.items() if case.reach is Reach.SESSION)


@dataclass
class Tenants:
    """A service with alice's session, which has messages, a screenshot, a shell, a file and a desktop."""

    harness: VncHarness
    http: httpx.AsyncClient
    session_id: str
    picture_id: str
    sandbox: DesktopSandbox

    @property
    def api(self) -> ApiHarness:
        return self.harness.api

    def url(self, path: str, session_id: str) -> str:
        return (
            path.replace("{session_id}", session_id)
            .replace("{picture_id}", self.picture_id)
            .replace("{name}", "swagger-ui.css")
        )

    async def call(
        self, method: str, path: str, headers: Mapping[str, str], *, session_id: str = "", body: Any = None
    ) -> httpx.Response:
        """Send a request, and read the response unless it is a stream."""
        session_id = session_id or self.session_id
        if isinstance(body, dict):
            body = {name: session_id if value == "{id}" else value for name, value in body.items()}
        url = self.url(path, session_id)
        async with self.http.stream(method, url, json=body, headers=dict(headers)) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                await response.aread()
        return response


def login(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@pytest.fixture
async def tenants() -> AsyncIterator[Tenants]:
    setting = ",".join(f"{name}:{token}" for name, token in TOKENS.items())
    harness = VncHarness(api=ApiHarness(authenticator=TokenLogin(setting)))
    async with (
        harness.run(),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{harness.port}", timeout=20) as http,
    ):
        created = await http.put(API, headers=login("alice"))
        session_id = created.json()["data"]["session_id"]
        sandbox = DesktopSandbox()
        harness.api.sandboxes.prepared[session_id] = sandbox
        body = {"message": "alice's secret"}
        answer = await http.post(f"{API}/{session_id}/chat", json=body, headers=login("alice"))
        assert answer.status_code == 200
        picture = await harness.api.screenshots.keep(session_id, JPEG)
        yield Tenants(harness, http, session_id, picture.rpartition("/")[2], sandbox)


def seen(response: httpx.Response, session_id: str) -> tuple[int, bytes, dict[str, str]]:
    """Return what a client sees of a response, without what differs between any two requests."""
    headers = {name: value for name, value in response.headers.items() if name not in ("x-request-id", "date")}
    return response.status_code, response.content.replace(session_id.encode(), b"ID"), headers


def test_every_route_is_listed() -> None:
    assert declared_calls() == set(ROUTES), "say in ROUTES who may call the route"
    sockets = [route.path for route in declared_routes() if isinstance(route, APIWebSocketRoute)]
    assert set(sockets) == WEBSOCKETS, "open the WebSocket in a test of this module"


async def test_request_without_a_login_gets_401_on_every_path_and_method(tenants: Tenants) -> None:
    for path in PATHS:
        for method in METHODS:
            for name, headers in NOBODY.items():
                response = await tenants.call(method, path, headers)
                if path == "/health":
                    assert response.status_code == (200 if method in ("GET", "HEAD") else 405)
                    continue
                assert response.status_code == 401, (method, path, name)
                assert response.headers["www-authenticate"] == "Bearer"
                assert "alice" not in response.text
                if method != "HEAD":
                    assert response.json()["code"] == 401
                    assert response.json()["data"] is None


async def test_session_of_another_tenant_looks_like_one_that_never_existed(tenants: Tenants) -> None:
    for path in PATHS:
        for method in METHODS:
            case = ROUTES.get(("GET" if method == "HEAD" else method, path))
            body = case.body if case else None
            theirs = await tenants.call(method, path, login("bob"), body=body)
            ghost = await tenants.call(method, path, login("bob"), session_id=GHOST, body=body)
            if "text/event-stream" in theirs.headers.get("content-type", ""):
                assert case is not None
                assert case.reach is Reach.OWN
                continue
            if case is None or case.reach not in (Reach.OWN, Reach.SHARED, Reach.OPEN):
                assert seen(theirs, tenants.session_id) == seen(ghost, GHOST), (method, path)
            if case is not None and case.reach in (Reach.SESSION, Reach.ADMIN):
                assert theirs.status_code == (404 if case.reach is Reach.SESSION else 403), (method, path)
    history = (await tenants.http.get(f"{API}/{tenants.session_id}", headers=login("alice"))).json()["data"]
    assert (history["title"], history["is_pinned"], history["status"]) == ("A title", False, "completed")
    assert len(history["events"]) == 4


async def test_owner_reaches_every_route(tenants: Tenants) -> None:
    """Check that the calls of `ROUTES` are valid, so that the 404 of the other tenant means what it should."""
    # The deletion comes last.
    for (method, path), case in sorted(ROUTES.items(), key=lambda item: item[0][0] == "DELETE"):
        caller = login("admin" if case.reach is Reach.ADMIN else "alice")
        response = await tenants.call(method, path, caller, body=case.body)
        # The fake's sandbox has neither the shell nor the file.
        expected = (404,) if path.endswith(("/shell", "/file")) else (case.own_status,)
        assert response.status_code in expected, (method, path, response.status_code)


async def test_lists_show_only_own_sessions(tenants: Tenants) -> None:
    own = (await tenants.http.put(API, headers=login("bob"))).json()["data"]["session_id"]
    listed = (await tenants.http.get(API, headers=login("bob"))).json()["data"]
    assert [session["session_id"] for session in listed["sessions"]] == [own]
    async with tenants.http.stream("POST", API, headers=login("bob")) as stream:
        frames = read_frames(stream)
        first = await anext(frames)
        assert [session["session_id"] for session in first.data["sessions"]] == [own]
        # A change of alice's sessions wakes the stream, and shows nothing.
        await tenants.http.put(API, headers=login("alice"))
        new = (await tenants.http.put(API, headers=login("bob"))).json()["data"]["session_id"]
        second = await anext(frames)
        assert {session["session_id"] for session in second.data["sessions"]} == {own, new}


async def test_administrator_does_not_read_the_sessions_of_others(tenants: Tenants) -> None:
    for method, path in SESSION_CALLS:
        response = await tenants.call(method, path, login("admin"), body=ROUTES[method, path].body)
        assert response.status_code == 404, (method, path)
    listed = await tenants.http.get("/api/v1/admin/sessions", headers=login("admin"))
    [row] = listed.json()["data"]["sessions"]
    assert (row["session_id"], row["owner"], row["status"]) == (tenants.session_id, "alice", "completed")
    assert "secret" not in listed.text
    assert "A title" not in listed.text


async def test_ticket_of_an_administrator_gives_no_rights_of_one(tenants: Tenants) -> None:
    answer = await tenants.http.get("/api/v1/admin/sessions", params={"ticket": "x"}, headers=login("bob"))
    assert answer.status_code == 403


@pytest.mark.parametrize("headers", NOBODY.values(), ids=list(NOBODY))
async def test_websocket_without_a_login_is_refused_with_401(
    tenants: Tenants, headers: Mapping[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for session_id in (tenants.session_id, GHOST, "x/y"):
        with pytest.raises(InvalidStatus) as refused:
            await tenants.harness.connect_viewer(session_id, additional_headers=dict(headers))
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_desktop_of_another_tenant_closes_like_one_that_never_existed(tenants: Tenants) -> None:
    reasons: list[tuple[int, str]] = []
    for session_id in (tenants.session_id, GHOST):
        viewer = await tenants.harness.connect_viewer(session_id, additional_headers=login("bob"))
        reasons.append(await close_reason(viewer))
    assert reasons == [(4404, "no such session")] * 2
    viewer = await tenants.harness.connect_viewer(tenants.session_id, additional_headers=login("alice"))
    await tenants.sandbox.opened.wait()
    await viewer.close()


async def test_websocket_to_an_unknown_path_returns_404_with_a_login(tenants: Tenants) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await tenants.harness.connect_viewer("x/y", additional_headers=login("bob"))
    assert refused.value.response.status_code == 404


async def test_ticket_opens_only_its_session_and_only_three_routes(tenants: Tenants) -> None:
    async def issue(name: str, session_id: str) -> str:
        answer = await tenants.http.post("/api/v1/tickets", json={"session_id": session_id}, headers=login(name))
        return answer.json()["data"]["ticket"]

    bobs = (await tenants.http.put(API, headers=login("bob"))).json()["data"]["session_id"]
    ticket = await issue("bob", bobs)
    for session_id in (tenants.session_id, GHOST):
        answer = await tenants.http.get(f"{API}/{session_id}/events", params={"ticket": ticket})
        assert answer.status_code == 401
        viewer = await tenants.harness.connect_viewer(session_id, ticket=ticket)
        assert (await close_reason(viewer))[0] == 4401
    for path in PATHS:
        for method in METHODS:
            if path == "/health" or (path.endswith(("/events", "/export")) and method in ("GET", "HEAD")):
                continue
            url = tenants.url(path, bobs)
            answer = await tenants.http.request(method, url, params={"ticket": ticket, "signature": "x"})
            assert answer.status_code == 401, (method, path)
    async with tenants.http.stream("GET", f"{API}/{bobs}/events", params={"ticket": ticket}) as stream:
        assert stream.status_code == 200  # it was not used up by any of these


async def test_signed_address_opens_the_desktop_of_its_session_without_a_header(tenants: Tenants) -> None:
    url = f"{API}/{tenants.session_id}/vnc/signed-url"
    signed = (await tenants.http.post(url, json={}, headers=login("alice"))).json()["data"]["signed_url"]
    signature = signed.partition("signature=")[2]
    viewer = await tenants.harness.connect_viewer(tenants.session_id, signature=signature)
    await tenants.sandbox.opened.wait()
    await viewer.close()
    viewer = await tenants.harness.connect_viewer(GHOST, signature=signature)
    assert (await close_reason(viewer))[0] == 4401
    answer = await tenants.http.get(f"{API}/{tenants.session_id}/events", params={"signature": signature})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/health/", "//health", "/HEALTH", "/health/../ready", "/x/health", "/health;x"])
async def test_path_that_resembles_the_open_one_needs_a_login(tenants: Tenants, path: str) -> None:
    assert (await tenants.http.get(path)).status_code == 401
