"""OriginMiddleware: which pages and which host names may use the service."""

import json
from collections.abc import Iterable

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from app.interfaces.middleware import OriginMiddleware


async def send_request(
    headers: dict[str, str] | list[tuple[str, str]], *, loopback_only: bool = True
) -> httpx.Response:
    guard = OriginMiddleware(
        PlainTextResponse("in"), allowed=["https://app.example", "http://b.example:3000/"], loopback_only=loopback_only
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://127.0.0.1:8000") as client:
        return await client.post("/", headers=headers)


async def open_websocket(
    headers: dict[str, str], *, extensions: Iterable[str] = ("websocket.http.response",)
) -> list[Message]:
    """Return the messages to a client that opens a WebSocket, on a server with `extensions`."""
    sent: list[Message] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in {"Host": "127.0.0.1:8000", **headers}.items()]
    scope = {"type": "websocket", "headers": raw, "extensions": {name: {} for name in extensions}}
    await OriginMiddleware(inside, allowed=["https://app.example"], loopback_only=True)(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:8000"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
        {"Host": "[::1]:8000", "User-Agent": "Mozilla/5.0"},
        {"Host": "LOCALHOST"},
        {"Host": "192.0.2.7:8000"},
        {"Host": "[2001:db8::1]"},
        {"Origin": "https://app.example"},
        {"Origin": "http://b.example:3000"},
        {"Host": "app.example", "Origin": "https://app.example"},
    ],
)
async def test_programs_and_allowed_origins_pass(headers: dict[str, str]) -> None:
    assert (await send_request(headers)).text == "in"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "http://app.example"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Origin": "http://["},
        {"Origin": ""},
        {"Origin": "127.0.0.1:8000"},
        {"Origin": "http://127.0.0.1:8000/"},
        {"Origin": "file://127.0.0.1:8000"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8000", "User-Agent": "x"},
        {"Host": "[bad"},
        {"Host": ""},
        {"Host": "localhost.evil.example"},
        {"Host": "evil.example@localhost"},
        {"Host": "localhost:80@evil.example"},
        {"Host": "evil.example/localhost"},
        {"Host": "2130706433"},
        {"Host": "127.0.0.1:port"},
    ],
)
async def test_other_origins_and_rebound_host_names_get_403_envelope(headers: dict[str, str]) -> None:
    response = await send_request(headers)
    assert response.status_code == 403
    assert response.json()["code"] == 403
    assert "ALLOWED_ORIGINS" in response.json()["msg"]


async def test_origin_behind_a_proxy_that_drops_the_port_gets_403_that_says_what_to_set() -> None:
    headers = {"Host": "127.0.0.1", "Origin": "http://127.0.0.1:5173"}
    message = (await send_request(headers)).json()["msg"]
    assert "name the origin in ALLOWED_ORIGINS" in message
    assert "forward the Host header with its port" in message
    assert (await send_request({**headers, "X-Forwarded-Host": "127.0.0.1:5173"})).status_code == 403
    assert (await send_request({**headers, "Host": "127.0.0.1:5173"})).text == "in"


@pytest.mark.parametrize("name", ["Host", "Origin"])
async def test_second_header_with_foreign_value_gets_403(name: str) -> None:
    own = [("Host", "127.0.0.1:8000"), ("Origin", "http://127.0.0.1:8000")]
    foreign = "evil.example" if name == "Host" else "https://evil.example"
    assert (await send_request(own)).text == "in"
    assert (await send_request([*own, (name, foreign)])).status_code == 403


async def test_public_service_accepts_any_host_name_but_checks_origin() -> None:
    assert (await send_request({"Host": "anker.example"}, loopback_only=False)).text == "in"
    refused = await send_request({"Host": "anker.example", "Origin": "https://evil.example"}, loopback_only=False)
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "http://127.0.0.1:8000"}, {"Origin": "https://app.example", "User-Agent": "Mozilla/5.0"}]
)
async def test_websockets_of_programs_and_allowed_origins_are_accepted(headers: dict[str, str]) -> None:
    assert await open_websocket(headers) == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Host": "evil.example:8000"},
        {"Origin": "http://["},
    ],
)
async def test_websockets_of_other_origins_get_403_envelope(headers: dict[str, str]) -> None:
    start, body = await open_websocket(headers)
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == 403
    assert body["type"] == "websocket.http.response.body"
    assert "ALLOWED_ORIGINS" in json.loads(body["body"])["msg"]


async def test_server_without_response_extension_closes_refused_websocket() -> None:
    (sent,) = await open_websocket({"Origin": "https://evil.example"}, extensions=())
    assert sent["type"] == "websocket.close"
