"""A scripted server for the module, and a way to make models that talk to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from app.domain.external.llm import ModelRequest
from app.domain.models.message import SystemMessage, Transcript, UserMessage
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.openai import OpenAIModel
from tests.fakes.scripted_openai import ScriptedOpenAI

KEY = "sk-test-0123456789abcdef"


class Listener:
    """Keeps what it hears; `restarts` counts, `heard` is set with the first piece."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.restarts = 0
        self.heard = asyncio.Event()

    def text(self, delta: str) -> None:
        self.pieces.append(delta)
        self.heard.set()

    def arguments(self, name: str, delta: str) -> None:
        self.calls.append((name, delta))
        self.heard.set()

    def restart(self) -> None:
        self.pieces.clear()
        self.calls.clear()
        self.restarts += 1


class Naps:
    """In place of `asyncio.sleep` and chance: notes the waits, takes no time, and always draws the largest number."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def uniform(self, _a: float, b: float) -> float:
        return b


def request(text: str = "Hello?", tools: tuple[ToolSpec, ...] = ()) -> ModelRequest:
    """A short conversation."""
    return ModelRequest(
        transcript=Transcript([SystemMessage(content="Be brief."), UserMessage(content=text)]), tools=tools
    )


@pytest.fixture
def ask() -> Callable[..., ModelRequest]:
    return request


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture(scope="package")
def running_server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
def server(running_server: ScriptedOpenAI) -> ScriptedOpenAI:
    """Set `server.script` before asking."""
    running_server.reset([])
    return running_server


@pytest.fixture
async def make(server: ScriptedOpenAI, naps: Naps) -> AsyncIterator[Callable[..., OpenAIModel]]:
    """Makes models of the scripted server, closed after the test."""
    made: list[OpenAIModel] = []

    def make(**options: Any) -> OpenAIModel:
        values: dict[str, Any] = {
            "api_key": KEY,
            "base_url": server.url,
            "model": "test-model",
            "timeout_seconds": 10,
            "sleep": naps.sleep,
            "rng": naps,
        }
        made.append(OpenAIModel(**(values | options)))
        return made[-1]

    yield make
    for model in made:
        await model.close()


@pytest.fixture
def model(make: Callable[..., OpenAIModel]) -> OpenAIModel:
    return make()
