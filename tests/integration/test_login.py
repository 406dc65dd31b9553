"""A service with a login as a process: what it accepts, and what its log says at DEBUG."""

import asyncio
import sys
from pathlib import Path

import httpx

from tests.support.issuer import AUDIENCE, Issuer
from tests.support.service import ROOT, ServiceProcess

SESSIONS = "/api/v1/sessions"


async def make_token(name: str) -> tuple[str, str]:
    """Return what `python -m app token` prints: the token, and its line for the file."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "token", name), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    lines = output.decode().splitlines()
    assert len(lines) == 4
    return lines[1], lines[3]


async def statuses(http: httpx.AsyncClient, *headers: dict[str, str]) -> list[int]:
    return [(await http.get(SESSIONS, headers=each)).status_code for each in headers]


async def test_token_works_until_its_line_is_removed_and_is_never_logged(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token, line = await make_token("alice")
    file.write_text(line)
    service = ServiceProcess(tmp_path / "data", HOST="0.0.0.0", API_TOKENS=str(file), LOG_LEVEL="DEBUG")
    client = await service.start()
    http, login = client.http, {"Authorization": f"Bearer {token}"}
    assert await statuses(http, login, {}, {"Authorization": "Bearer canary-of-a-guess"}) == [200, 401, 401]
    assert (await http.get("/api/v1/config/frontend", headers=login)).json()["data"]["auth_provider"] == "tokens"
    session_id = (await http.put(SESSIONS, headers=login)).json()["data"]["session_id"]
    ticket = (await http.post("/api/v1/tickets", json={"session_id": session_id}, headers=login)).json()["data"][
        "ticket"
    ]
    async with http.stream("GET", f"{SESSIONS}/{session_id}/events", params={"ticket": ticket}) as stream:
        assert stream.status_code == 200
        file.write_text((await make_token("bob"))[1])
        async with asyncio.timeout(30):
            while await statuses(http, login) != [401]:
                await asyncio.sleep(0.1)
    await client.close()
    await service.stop()
    log = service.log.read_text()
    assert "login refused" in log
    assert not any(secret in log for secret in (token, ticket, "canary", line.partition(":")[2]))


async def test_tokens_of_an_issuer_are_accepted_and_never_logged(tmp_path: Path) -> None:
    issuer = Issuer()
    with issuer.serve():
        settings = {"AUTH": "oidc", "OIDC_ISSUER": issuer.url, "OIDC_AUDIENCE": AUDIENCE, "LOG_LEVEL": "DEBUG"}
        service = ServiceProcess(tmp_path / "data", **settings)
        client = await service.start()
        token, expired = issuer.token(), issuer.token(exp=1)
        headers = [{"Authorization": f"Bearer {each}"} for each in (token, expired, token + "x")]
        assert await statuses(client.http, *headers, {}) == [200, 401, 401, 401]
        assert (await client.http.get("/ready", headers=headers[0])).json()["data"]["login"] == "ok"
    await client.close()
    await service.stop()
    log = service.log.read_text()
    assert "the token has expired" in log
    assert not any(part in log for part in (*token.split(".")[1:], *expired.split(".")[1:]))


async def test_forwarded_address_makes_nobody_a_proxy(tmp_path: Path) -> None:
    settings = {"AUTH": "proxy", "AUTH_PROXY_HEADER": "X-Forwarded-User", "AUTH_PROXY_FROM": "10.0.0.0/8"}
    service = ServiceProcess(tmp_path / "data", **settings, FORWARDED_ALLOW_IPS="*")
    client = await service.start()
    spoofed = {"X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1", "X-Real-IP": "10.0.0.1"}
    assert await statuses(client.http, {"X-Forwarded-User": "alice", **spoofed}) == [401]
    await client.close()
    await service.stop()
