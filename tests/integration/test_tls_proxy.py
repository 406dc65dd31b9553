"""The TLS example: `deploy/Caddyfile` in a real Caddy, in front of the real service."""

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.integration.test_backup import script
from tests.support.eventually import eventually
from tests.support.service import ROOT, ApiClient, ServiceProcess
from tests.support.stores import free_port


@dataclass
class Proxy:
    """A running Caddy: its addresses, and a TLS context that trusts its certificate authority only."""

    http_url: str
    https_url: str
    tls: ssl.SSLContext


@asynccontextmanager
async def running_caddy(folder: Path, upstream: str) -> AsyncGenerator[Proxy, None]:
    """Run the example for `localhost`, for which Caddy issues a certificate itself."""
    program = shutil.which("caddy")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("caddy is not installed")
        pytest.skip("caddy is not installed")
    http, https = free_port(), free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "ANKER_DOMAIN": "localhost",
        "ANKER_UPSTREAM": upstream,
        "ANKER_HTTP_PORT": str(http),
        "ANKER_HTTPS_PORT": str(https),
        "XDG_DATA_HOME": str(folder / "caddy"),
        "XDG_CONFIG_HOME": str(folder / "caddy"),
    }
    with (folder / "caddy.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(program, "run", "--adapter", "caddyfile", "--config", str(ROOT / "deploy/Caddyfile")),
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        authority = folder / "caddy/caddy/pki/authorities/local/root.crt"
        await eventually(authority.exists, message="Caddy did not start")
        tls = ssl.create_default_context(cafile=authority)
        await eventually(lambda: _has_certificate(https, tls), message="Caddy issued no certificate")
        yield Proxy(f"http://localhost:{http}", f"https://localhost:{https}", tls)
    finally:
        process.terminate()
        await process.wait()


async def _has_certificate(port: int, tls: ssl.SSLContext) -> bool:
    try:
        _, writer = await asyncio.open_connection("localhost", port, ssl=tls)
    except OSError:  # ssl.SSLError is one
        return False
    writer.close()
    return True


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[Proxy, ApiClient]]:
    """The service behind Caddy, and a client that uses Caddy."""
    with ScriptedOpenAI(script) as model:
        service = ServiceProcess(tmp_path / "data", API_KEY="sk-0123456789", API_BASE=model.url)
        direct = await service.start()
        await direct.close()
        async with running_caddy(tmp_path, service.url.removeprefix("http://")) as proxy:
            client = ApiClient(proxy.https_url, transport=httpx.AsyncHTTPTransport(verify=proxy.tls))
            yield proxy, client
            await client.close()
        await service.stop()


async def test_service_behind_tls_proxy_works_as_without(proxied: tuple[Proxy, ApiClient]) -> None:
    proxy, client = proxied
    response = await client.http.get("/health")
    assert response.status_code == 200
    assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert (await client.http.get("/metrics")).status_code == 404
    async with httpx.AsyncClient() as plain:
        redirect = await plain.get(f"{proxy.http_url}/health")
        assert (redirect.status_code, redirect.headers["Location"][:8]) == (308, "https://")

    # Events arrive one by one: this call goes on for minutes after the event that is awaited here.
    session_id = await client.create_session()
    headers = {"Origin": proxy.https_url}
    stream = await client.open_chat(session_id, {"message": "please sleep"}, headers)
    await stream.wait_for("tool", status="calling")
    assert not stream.ended.is_set()
    await client.stop_run(session_id)
    await stream.wait_for("done")
    foreign = await client.http.put("/api/v1/sessions", headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403

    # A WebSocket reaches the service, which closes it with a code of its own.
    url = f"{proxy.https_url.replace('https', 'wss')}/api/v1/sessions/unknown/vnc"
    async with connect(url, ssl=proxy.tls, subprotocols=[Subprotocol("binary")], proxy=None) as viewer:
        await viewer.wait_closed()
        assert viewer.close_code == 4404


async def test_proxy_removes_forged_identities(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running_caddy(tmp_path, f"127.0.0.1:{port}") as proxy, server:
        names = ("X-Forwarded-User", "X-Forwarded-Email", "X-Auth-Request-User", "X-Remote-User", "Remote-User")
        forged = dict.fromkeys((*names, "X-Forwarded-For", "X-Forwarded-Host"), "mallory")
        async with httpx.AsyncClient(verify=proxy.tls) as client:
            response = await client.get(f"{proxy.https_url}/api/v1/sessions", headers=forged)
            assert "mallory" not in response.text
            assert f"Host: {proxy.https_url.removeprefix('https://')}\r\n" in response.text
            assert "X-Forwarded-For: 127.0.0.1\r\n" in response.text
            assert "X-Forwarded-Proto: https\r\n" in response.text
