"""The service as a process, with Docker sandboxes and a scripted model over real HTTP."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.scripted_openai import Call, Reply, ScriptedOpenAI
from tests.support.containers import SANDBOX_IMAGE, cleared, inspect, named, run
from tests.support.eventually import eventually
from tests.support.service import ROOT, ApiClient, ChatStream, ServiceProcess
from tests.support.sse import SseFrame

KEY = "sk-very-secret-key-0123456789"

EXPORT_MAX_BYTES = 1 << 30
"""The setting of the service: less than the largest file that a sandbox can hold."""


@dataclass
class DockerService:
    """A service process, its scripted model, and its objects on the engine."""

    process: ServiceProcess
    client: ApiClient
    model: ScriptedOpenAI
    prefix: str
    tokens: set[str] = field(default_factory=set)
    """The tokens of the sandboxes that were deleted."""

    def container_name(self, session: str) -> str:
        return f"{self.prefix}-{session}"

    async def container(self, session: str) -> dict[str, Any]:
        """Return what the engine reports about a session's container."""
        return await inspect(self.container_name(session))

    async def has_container(self, session: str) -> bool:
        return self.container_name(session) in (await named(self.prefix))["container"]

    async def has_volume(self, session: str) -> bool:
        return self.container_name(session) in (await named(self.prefix))["volume"]

    async def delete(self, session: str) -> int:
        """Delete a session, check that its container and volume are removed, and return the response's status code."""
        if await self.has_container(session):
            self.tokens.add(_token(await self.container(session)))
        response = await self.client.http.delete(f"/api/v1/sessions/{session}")
        assert not await self.has_container(session)
        assert not await self.has_volume(session)
        return response.status_code

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    images: None, model: ScriptedOpenAI, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DockerService]:
    """The service that all tests share. At the end, its log must contain no secret and no traceback."""
    async with cleared(f"sess-{uuid.uuid4().hex[:6]}") as prefix:
        process = ServiceProcess(
            tmp_path_factory.mktemp("service") / "data",
            API_KEY=KEY,
            API_BASE=model.url,
            MODEL_NAME="scripted",
            SANDBOX_PROVIDER="auto",
            SANDBOX_IMAGE=SANDBOX_IMAGE,
            SANDBOX_NAME_PREFIX=prefix,
            SANDBOX_NETWORK=f"{prefix}-network",
            LOG_LEVEL="DEBUG",
            EXPORT_MAX_BYTES=str(EXPORT_MAX_BYTES),
        )
        try:
            service = DockerService(process, await process.start(), model, prefix)
            yield service
            await service.client.close()
        finally:
            await process.stop()
        log = process.log.read_text()
        assert service.tokens
        for secret in (KEY, *service.tokens):
            assert secret not in log
        assert "Traceback" not in log, log[-4000:]


@pytest_asyncio.fixture(loop_scope="module")
async def session(service: DockerService) -> AsyncIterator[str]:
    """A new session, which is deleted after the test."""
    session = await service.client.create_session()
    yield session
    await service.delete(session)


def _token(container: dict[str, Any]) -> str:
    assert KEY not in str(container)
    return dict(line.split("=", 1) for line in container["Config"]["Env"])["SANDBOX_TOKEN"]
