"""The service as a process, with Docker sandboxes and a scripted model over real HTTP."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.scripted_openai import Call, Reply, ScriptedOpenAI
from tests.support.containers import cleared, inspect, named, run
from tests.support.eventually import eventually
from tests.support.service import ROOT, ApiClient, ChatStream, ServiceProcess
from tests.support.sse import SseFrame

KEY = "sk-very-secret-key-0123456789"


@dataclass
class DockerService:
    """A service process, its scripted model, and its objects on the engine."""

    process: ServiceProcess
    client: ApiClient
    model: ScriptedOpenAI
    prefix: str

    async def containers(self) -> list[str]:
        """Return the names of the sandbox containers, without the short-lived firewall helpers."""
        return [name for name in (await named(self.prefix))["container"] if "-guard-" not in name]

    async def volumes(self) -> list[str]:
        return (await named(self.prefix))["volume"]

    def container_name(self, session: str) -> str:
        return f"{self.prefix}-{session}"

    async def container(self, session: str) -> dict[str, Any]:
        """Return what the engine says about a session's container."""
        return await inspect(self.container_name(session))

    async def kill_and_restart(self) -> None:
        await self.process.kill()
        await self.client.close()
        self.client = await self.process.start()


def completed_calls(frames: Sequence[SseFrame], function: str = "") -> list[dict[str, Any]]:
    """Return the data of the completed tool calls, of `function` only if it is given."""
    calls = [each.data for each in frames if each.event == "tool" and each.data["status"] == "called"]
    return [each for each in calls if function in ("", each["function"])]


async def wait_for_completed_call(chat: ChatStream, function: str) -> None:
    def is_completed() -> bool:
        assert not chat.ended.is_set(), chat.event_types
        return bool(completed_calls(chat.frames, function))

    await eventually(is_completed, seconds=60)


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
    """Start the engine and build the sandbox image if they are missing."""

    async def prepare() -> None:
        await run(str(ROOT / "scripts" / "engine.sh"))
        await run(str(ROOT / "scripts" / "image.sh"))

    asyncio.run(prepare())


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
async def service(images: None, model: ScriptedOpenAI, tmp_path: Path) -> AsyncIterator[DockerService]:
    async with cleared(f"sess-{uuid.uuid4().hex[:6]}") as prefix:
        process = ServiceProcess(
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
            service = DockerService(process, await process.start(), model, prefix)
            yield service
            tokens = [_token(await inspect(name)) for name in await service.containers()]
            await service.client.close()
        finally:
            await process.stop()
        log = process.log.read_text()
        for secret in (KEY, *tokens):
            assert secret not in log
        assert "Traceback" not in log, log[-4000:]


def _token(container: dict[str, Any]) -> str:
    assert KEY not in str(container)
    return dict(line.split("=", 1) for line in container["Config"]["Env"])["SANDBOX_TOKEN"]
