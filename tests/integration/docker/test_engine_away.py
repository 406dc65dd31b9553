"""An engine that goes away and comes back: a door between the service and the real engine is shut and opened."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker import engine, life
from tests.integration.docker.site import Site, run
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Door:
    """A socket that leads to the engine's while it is `open`; `stuck`, it takes every word and answers none."""

    def __init__(self, path: Path, target: str) -> None:
        self.environment = {"DOCKER_HOST": f"unix://{path}"}
        self.stuck = asyncio.Event()
        self._path = path
        self._target = target
        self._server: asyncio.Server | None = None
        self._through: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self.stuck.clear()
        self._server = await asyncio.start_unix_server(self._pass, self._path)

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        for task in list(self._through):
            task.cancel()
        await asyncio.gather(*self._through, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._through.add(task)
        try:
            beyond, to = await asyncio.open_unix_connection(self._target)
            try:
                await asyncio.gather(self._copy(reader, to), self._copy(beyond, writer))
            finally:
                to.close()
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            self._through.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            while self.stuck.is_set():
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def door(here: Site, folder: Path) -> AsyncIterator[Door]:
    if not here.api.base_url.startswith("http+docker://"):
        pytest.skip("the engine is not at a socket of this machine")
    made = Door(folder / "docker.sock", here.api._custom_adapter.socket_path)
    await made.open()
    try:
        yield made
    finally:
        await made.shut()


async def test_while_the_engine_is_away_sandboxes_that_run_are_used_on_and_new_ones_refused_at_once(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "FRESH_SECONDS", 0.0)
    running, new, doomed = here.session(), here.session(), here.session()
    async with door(here, tmp_path) as between, here.provider(environment=between.environment) as service:
        sandbox = await service.acquire(running)
        await service.acquire(doomed)
        await between.shut()
        begun = time.monotonic()
        with pytest.raises(SandboxUnavailable, match="engine does not answer"):
            await service.acquire(new)
        with pytest.raises(SandboxUnavailable, match="engine does not answer"):
            await service.find(new)
        assert "engine does not answer" in (await service.check() or "")
        assert time.monotonic() - begun < 2
        assert (await service.acquire(running)) is sandbox and await service.find(running) is sandbox
        assert await run(sandbox, "echo on") == (0, "on\n")
        with pytest.raises(SandboxUnavailable):
            await service.reap()
        # It is destroyed as soon as that is possible: its session is gone by then.
        here.sessions.discard(doomed)
        await service.destroy(doomed)

        await between.open()
        assert await service.check() is None
        assert await run(await service.acquire(new), "echo new") == (0, "new\n")
        await service.reap()
        assert here.container(doomed) is None and here.name(doomed) not in here.volumes()
        for session in (running, new):
            await service.destroy(session)


async def test_an_engine_that_hangs_is_given_up_and_blocks_nothing_else(
    here: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(engine, "QUICK_SECONDS", 1.0)
    monkeypatch.setattr(engine, "PING_SECONDS", 1.0)
    running, new = here.session(), here.session()
    async with door(here, tmp_path) as between, here.provider(environment=between.environment) as service:
        sandbox = await service.acquire(running)
        between.stuck.set()
        begun = time.monotonic()
        refused = asyncio.create_task(service.acquire(new))
        # Meanwhile the loop is free, and what runs is used on.
        for _ in range(10):
            assert await service.acquire(running) is sandbox
            assert await run(sandbox, "echo on") == (0, "on\n")
        with pytest.raises(SandboxUnavailable, match="engine does not answer"):
            await refused
        assert "engine does not answer" in (await service.check() or "")
        assert time.monotonic() - begun < 15
        between.stuck.clear()

        async def well() -> bool:
            return await service.check() is None

        await eventually(well)
        assert await run(await service.acquire(new), "echo new") == (0, "new\n")
        for session in (running, new):
            await service.destroy(session)


async def test_a_service_may_start_before_the_engine(here: Site, tmp_path: Path) -> None:
    session = here.session()
    async with door(here, tmp_path) as between:
        await between.shut()
        async with here.provider(environment=between.environment, pool_size=1) as service:
            assert "engine does not answer" in (await service.check() or "")
            await between.open()
            assert await service.check() is None
            assert await run(await service.acquire(session), "echo on") == (0, "on\n")
            await service.destroy(session)
