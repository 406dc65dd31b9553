"""How `SANDBOX_PROVIDER=auto` detects Docker, and what happens without it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox import auto
from app.infrastructure.sandbox.auto import REAL_MODEL_UNISOLATED, UnavailableSandboxes, docker_answers
from app.settings import ONE_PROCESS_ONLY
from tests.support.service import ServiceNotStarted, ServiceProcess
from tests.support.stores import Mongod, require_mongod


@asynccontextmanager
async def engine(path: Path, answer: bytes, *, after: float = 0) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /_ping HTTP/1.1\r\n")
        await asyncio.sleep(after)
        writer.write(answer)
        if not answer:
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()


async def test_docker_answers_while_its_socket_does(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    environment = {"DOCKER_HOST": f"unix://{path}"}
    assert not await docker_answers(environment)
    async with engine(path, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"):
        assert await docker_answers(environment)
    assert not await docker_answers(environment)


async def test_docker_answers_waits_for_a_slow_engine(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
    async with engine(tmp_path / "docker.sock", answer, after=auto.CONNECT_SECONDS + 0.2):
        assert await docker_answers({"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"})


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", b"SSH-2.0\r\n\r\n", b""])
async def test_docker_answers_with_another_server_at_the_socket_is_false(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PING_SECONDS", 0.1)
    async with engine(tmp_path / "docker.sock", answer):
        assert not await docker_answers({"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"})


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:1", "ssh://user@host", "nonsense", "tcp://[", "unix://"])
async def test_docker_answers_for_an_unusable_docker_host_is_false(host: str) -> None:
    assert not await docker_answers({"DOCKER_HOST": host})


async def test_unavailable_sandboxes_raise_the_reason() -> None:
    provider = UnavailableSandboxes(REAL_MODEL_UNISOLATED)
    provider.warm("s1")
    with pytest.raises(SandboxUnavailable, match="SANDBOX_PROVIDER=local"):
        await provider.acquire("s1")
    assert await provider.find("s1") is None
    assert await provider.check() == REAL_MODEL_UNISOLATED
    await provider.destroy("s1")
    await provider.close()


async def test_auto_without_docker_with_mongodb_fails_start_with_one_line(tmp_path: Path) -> None:
    require_mongod()
    mongod = Mongod(tmp_path / "mongod")
    await asyncio.to_thread(mongod.start)
    nowhere = f"unix://{tmp_path}/docker.sock"
    service = ServiceProcess(tmp_path / "data", MONGODB_URL=mongod.url, SANDBOX_PROVIDER="auto", DOCKER_HOST=nowhere)
    try:
        with pytest.raises(ServiceNotStarted) as not_started:
            await service.launch()
    finally:
        mongod.kill()
    assert str(not_started.value) == f"{ONE_PROCESS_ONLY}\n"
