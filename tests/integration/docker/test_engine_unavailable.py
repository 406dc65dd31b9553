"""An engine that stops responding and comes back, simulated by a proxy between the provider and the real engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client import running_sandbox
from app.infrastructure.sandbox.docker import engine as engine_module
from tests.integration.docker.engine_sandbox import EngineSandbox, run
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


class EngineProxy:
    """A Unix socket that forwards to the engine's. While `stalled` is set, it accepts requests and returns nothing."""

    def __init__(self, path: Path, target: str) -> None:
        self.environment = {"DOCKER_HOST": f"unix://{path}"}
        self.stalled = asyncio.Event()
        self._path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self.stalled.clear()
        self._server = await asyncio.start_unix_server(self._forward, self._path)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            engine_reader, engine_writer = await asyncio.open_unix_connection(self._target)
            try:
                await asyncio.gather(self._copy(reader, engine_writer), self._copy(engine_reader, writer))
            finally:
                engine_writer.close()
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            while self.stalled.is_set():
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def engine_proxy(engine: EngineSandbox, folder: Path) -> AsyncIterator[EngineProxy]:
    if not engine.api.base_url.startswith("http+docker://"):
        pytest.skip("the engine is not at a socket of this machine")
    proxy = EngineProxy(folder / "docker.sock", engine.api._custom_adapter.socket_path)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()


async def test_without_engine_running_sandboxes_stay_usable_and_new_ones_are_refused_at_once(
    engine: EngineSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_sandbox, "FRESH_SECONDS", 0.0)
    running, new, deleted = engine.new_session(), engine.new_session(), engine.new_session()
    async with engine_proxy(engine, tmp_path) as proxy, engine.provider(environment=proxy.environment) as provider:
        sandbox = await provider.acquire(running)
        await provider.acquire(deleted)
        await proxy.close()
        started = time.monotonic()
        with pytest.raises(SandboxUnavailable, match="engine does not respond"):
            await provider.acquire(new)
        with pytest.raises(SandboxUnavailable, match="engine does not respond"):
            await provider.find(new)
        assert "engine does not respond" in (await provider.check() or "")
        assert time.monotonic() - started < 2
        found = await provider.find(running)
        assert found is not None and found.instance_id == sandbox.instance_id
        assert (await provider.acquire(running)).instance_id == sandbox.instance_id
        assert await run(sandbox, "echo on") == (0, "on\n")
        with pytest.raises(SandboxUnavailable):
            await provider.reap()
        # The removal happens once the engine is back; the session is already gone.
        engine.sessions.discard(deleted)
        await provider.destroy(deleted)

        await proxy.open()
        assert await provider.check() is None
        assert await run(await provider.acquire(new), "echo new") == (0, "new\n")
        await provider.reap()
        assert not engine.has_container(deleted) and not engine.has_volume(deleted)
        for session in (running, new):
            await provider.destroy(session)


async def test_stalled_engine_times_out_without_blocking_the_event_loop(
    engine: EngineSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_sandbox, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(engine_module, "QUERY_SECONDS", 1.0)
    monkeypatch.setattr(engine_module, "PING_SECONDS", 1.0)
    running, new = engine.new_session(), engine.new_session()
    async with engine_proxy(engine, tmp_path) as proxy, engine.provider(environment=proxy.environment) as provider:
        sandbox = await provider.acquire(running)
        proxy.stalled.set()
        started = time.monotonic()
        refused = asyncio.create_task(provider.acquire(new))
        # Running sandboxes stay usable meanwhile.
        for _ in range(10):
            assert (await provider.acquire(running)).instance_id == sandbox.instance_id
            assert await run(sandbox, "echo on") == (0, "on\n")
        with pytest.raises(SandboxUnavailable, match="engine does not respond"):
            await refused
        assert "engine does not respond" in (await provider.check() or "")
        assert time.monotonic() - started < 15
        proxy.stalled.clear()

        async def is_available() -> bool:
            return await provider.check() is None

        await eventually(is_available)
        assert await run(await provider.acquire(new), "echo new") == (0, "new\n")
        for session in (running, new):
            await provider.destroy(session)


async def test_service_may_start_before_the_engine(engine: EngineSandbox, tmp_path: Path) -> None:
    session = engine.new_session()
    async with engine_proxy(engine, tmp_path) as proxy:
        await proxy.close()
        async with engine.provider(environment=proxy.environment, pool_size=1) as provider:
            assert "engine does not respond" in (await provider.check() or "")
            await proxy.open()
            assert await provider.check() is None
            assert await run(await provider.acquire(session), "echo on") == (0, "on\n")
            await provider.destroy(session)
