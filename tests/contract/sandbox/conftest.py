"""The sandboxes that the contract is checked on: the fake, a local process and a container."""

import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio

from app.domain.external.sandbox import Sandbox, SandboxProvider
from app.infrastructure.sandbox.local.provider import LocalSandboxes
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.integration.docker.engine_sandbox import engine_sandbox, prepare_engine_and_images

_numbers = itertools.count()


@dataclass
class Bench:
    """A provider whose sandboxes know the commands of the contract."""

    provider: SandboxProvider
    make_session: Callable[[], str]
    _next: str = ""

    async def sandbox(self) -> Sandbox:
        """Return a new session's sandbox, and start the next one in the background to save time."""
        session, self._next = self._next or self.make_session(), self.make_session()
        sandbox = await self.provider.acquire(session)
        self.provider.warm(self._next)
        return sandbox


def _memory() -> Bench:
    provider = MemorySandboxProvider()

    def session() -> str:
        name = f"s{next(_numbers)}"
        sandbox = provider.prepare(name)
        sandbox.script("echo hello", "hello\n")
        sandbox.script("echo more", "more\n")
        sandbox.script("false", returncode=1)
        for command in ("sleep 60", "cat"):
            sandbox.script(command, runs=True)
        return name

    return Bench(provider, session)


@pytest_asyncio.fixture(params=["memory", "local", "docker"], scope="module", loop_scope="module")
async def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    if request.param == "memory":
        bench = _memory()
        yield bench
        await bench.provider.close()
    elif request.param == "docker":
        prepare_engine_and_images()
        async with engine_sandbox() as engine, engine.provider(exec_seconds=0.3) as provider:
            yield Bench(provider, engine.new_session)
    else:
        async with LocalSandboxes(tmp_path_factory.mktemp("data"), exec_seconds=0.3) as provider:
            yield Bench(provider, lambda: f"s{next(_numbers)}")
