"""Who may call from a browser."""

import httpx
import pytest
from starlette.responses import PlainTextResponse

from app.interfaces.origin import OriginGuard


async def ask(headers: dict[str, str], *, loopback_only: bool = True) -> httpx.Response:
    guard = OriginGuard(
        PlainTextResponse("in"), allowed=["https://app.example", "http://b.example:3000/"], loopback_only=loopback_only
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://127.0.0.1:8000") as client:
        return await client.post("/", headers=headers)


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
