"""Who may call from a browser."""

import json
from collections.abc import Iterable

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from app.interfaces.middleware import OriginMiddleware


async def ask(headers: dict[str, str], *, loopback_only: bool = True) -> httpx.Response:
    guard = OriginMiddleware(
        PlainTextResponse("in"), allowed=["https://app.example", "http://b.example:3000/"], loopback_only=loopback_only
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://127.0.0.1:8000") as client:
        return await client.post("/", headers=headers)


async def knock(headers: dict[str, str], *, extensions: Iterable[str] = ("websocket.http.response",)) -> list[Message]:
    """What is sent to a client that asks for a WebSocket; `extensions` are what the server can do."""
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
        {"Host": "anything.example"},
        {"Origin": "https://app.example"},
        {"Origin": "http://b.example:3000"},
        {"Host": "app.example", "Origin": "https://app.example"},
    ],
)
async def test_programs_and_pages_that_belong_here_come_in(headers: dict[str, str]) -> None:
    assert (await ask(headers)).text == "in"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "http://app.example"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Host": "evil.example", "User-Agent": "Mozilla/5.0"},
        {"Host": "[bad", "User-Agent": "Mozilla/5.0"},
    ],
)
async def test_pages_of_other_origins_and_rebound_names_are_refused_in_the_envelope(headers: dict[str, str]) -> None:
    response = await ask(headers)
    assert response.status_code == 403
    assert response.json()["code"] == 403
    assert "ALLOWED_ORIGINS" in response.json()["msg"]


async def test_a_service_that_is_reachable_from_elsewhere_is_called_by_whatever_name_it_has() -> None:
    assert (await ask({"Host": "anker.example"}, loopback_only=False)).text == "in"
    refused = await ask({"Host": "anker.example", "Origin": "https://evil.example"}, loopback_only=False)
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "http://127.0.0.1:8000"}, {"Origin": "https://app.example", "User-Agent": "Mozilla/5.0"}]
)
async def test_websockets_of_programs_and_of_pages_that_belong_here_come_in(headers: dict[str, str]) -> None:
    assert await knock(headers) == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
    ],
)
async def test_websockets_of_other_pages_are_refused_in_the_envelope(headers: dict[str, str]) -> None:
    start, body = await knock(headers)
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == 403
    assert body["type"] == "websocket.http.response.body"
    assert "ALLOWED_ORIGINS" in json.loads(body["body"])["msg"]


async def test_a_server_that_cannot_answer_a_websocket_with_words_closes_it() -> None:
    (sent,) = await knock({"Origin": "https://evil.example"}, extensions=())
    assert sent["type"] == "websocket.close"
