"""The real service as a process, with Docker sandboxes and a scripted model over real HTTP."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_openai import Call, Reply, ScriptedOpenAI
from tests.support.containers import cleared, docker, inspect, named, run
from tests.support.service import ROOT, ApiClient, ChatStream, ServiceProcess
from tests.support.sse import SseFrame

KEY = "sk-very-secret-key-0123456789"


@dataclass
class Yard:
    """A service, and what of the engine's is its own."""

    service: ServiceProcess
    client: ApiClient
    model: ScriptedOpenAI
    prefix: str

    async def containers(self) -> list[str]:
        """The names of the sandboxes that there are; the guard's helpers come and go."""
        return [name for name in (await named(self.prefix))["container"] if "-guard-" not in name]

    async def volumes(self) -> list[str]:
        return (await named(self.prefix))["volume"]

    def name(self, session: str) -> str:
        """What a session's container is called."""
        return f"{self.prefix}-{session}"

    async def container(self, session: str) -> dict[str, Any]:
        return await inspect(self.name(session))

    async def start_again(self) -> None:
        """The service dies without a chance to tidy up, and is started again."""
        await self.service.kill()
        await self.client.close()
        self.client = await self.service.start()

    async def called(self, chat: ChatStream, function: str, count: int = 1) -> dict[str, Any]:
        """The data of the stream's `count`-th ended call of `function`, waiting for it."""
        async with asyncio.timeout(60):
            while True:
                ended = [
                    item.data
                    for item in chat.frames
                    if item.event == "tool" and item.data["function"] == function and item.data["status"] == "called"
                ]
                if len(ended) >= count:
                    return ended[count - 1]
                assert not chat.ended.is_set(), chat.event_types
                await asyncio.sleep(0.02)

    def called_in(self, seen: list[SseFrame], function: str) -> dict[str, Any]:
        """The data of the first ended call of `function` in a stream that is over."""
        return next(
            item.data
            for item in seen
            if item.event == "tool" and item.data["function"] == function and item.data["status"] == "called"
        )


def plan(*steps: str) -> Reply:
    listed = [{"id": str(n), "description": text} for n, text in enumerate(steps or ("one",), start=1)]
    return Reply(calls=[Call("create_plan", {"title": "T", "message": "I will.", "goal": "G", "steps": listed})])


def calling(name: str, **arguments: Any) -> Reply:
    return Reply(calls=[Call(name, arguments)])


def shell(command: str, shell_id: str = "main") -> Reply:
    return calling("shell_exec", id=shell_id, exec_dir="~", command=command)


def complete() -> Reply:
    return calling("complete_step", success=True, result="ok")


@pytest.fixture(scope="module")
def images() -> None:
    """An engine, and the sandboxes' image made of the files that are here."""

    async def ready() -> None:
        await run(str(ROOT / "scripts" / "engine.sh"))
        await run(str(ROOT / "scripts" / "image.sh"))

    asyncio.run(ready())


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
async def yard(images: None, model: ScriptedOpenAI, tmp_path: Path) -> AsyncIterator[Yard]:
    async with cleared(f"sess-{uuid.uuid4().hex[:6]}") as prefix:
        service = ServiceProcess(
            tmp_path / "data",
            API_KEY=KEY,
            API_BASE=model.url,
            MODEL_NAME="scripted",
            SANDBOX_PROVIDER="auto",
            SANDBOX_NAME_PREFIX=prefix,
            SANDBOX_NETWORK=f"{prefix}-network",
            LOG_LEVEL="DEBUG",
        )
        try:
            yard = Yard(service, await service.start(), model, prefix)
            yield yard
            tokens = [_token(await inspect(name)) for name in await yard.containers()]
            await yard.client.close()
        finally:
            await service.stop()
        log = service.log.read_text()
        for secret in (KEY, *tokens):
            assert secret not in log
        assert "Traceback" not in log, log[-4000:]


def _token(container: dict[str, Any]) -> str:
    variables = dict(line.split("=", 1) for line in container["Config"]["Env"])
    assert KEY not in str(container)
    return variables["SANDBOX_TOKEN"]


async def kill(name: str) -> None:
    """As when it ran out of memory."""
    await docker("kill", name)


async def remove(name: str) -> None:
    """As somebody who tidies up the wrong thing."""
    await docker("rm", "--force", name)
