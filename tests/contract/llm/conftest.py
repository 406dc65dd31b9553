"""Fixtures: a scripted model server and models that call it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from app.domain.external.llm import ModelRequest
from app.domain.models.message import SystemMessage, Transcript, UserMessage
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.openai_model import OpenAIModel
from tests.fakes.scripted_openai import ScriptedOpenAI

KEY = "sk-test-0123456789abcdef"


class Listener:
    """Record what a `ReplyListener` receives. `heard` is set by the first delta."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.restarts = 0
        self.waits: list[tuple[str, float | None]] = []
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

    def waiting(self, text: str, retry_in: float | None) -> None:
        self.waits.append((text, retry_in))


class FakeSleep:
    """Replace `asyncio.sleep` and the random source: record delays, return at once, draw the largest number."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def time(self) -> float:
        """Return the time that was slept, as a clock that is never set."""
        return sum(self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def uniform(self, _a: float, b: float) -> float:
        return b


def request(text: str = "Hello?", tools: tuple[ToolSpec, ...] = ()) -> ModelRequest:
    """Return a request with a short conversation."""
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
def fake_sleep() -> FakeSleep:
    return FakeSleep()


@pytest.fixture(scope="package")
def running_server() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest.fixture
def server(running_server: ScriptedOpenAI) -> ScriptedOpenAI:
    """Return the server without a script; the test sets `server.script`."""
    running_server.reset([])
    return running_server


@pytest.fixture
async def make(server: ScriptedOpenAI, fake_sleep: FakeSleep) -> AsyncIterator[Callable[..., OpenAIModel]]:
    """Return a factory of models that call the scripted server; they are closed after the test."""
    made: list[OpenAIModel] = []

    def make(**options: Any) -> OpenAIModel:
        values: dict[str, Any] = {
            "api_key": KEY,
            "base_url": server.url,
            "model": "test-model",
            "timeout_seconds": 10,
            "sleep": fake_sleep.sleep,
            "timer": fake_sleep.time,
            "rng": fake_sleep,
        }
        made.append(OpenAIModel(**(values | options)))
        return made[-1]

    yield make
    for model in made:
        await model.close()


@pytest.fixture
def model(make: Callable[..., OpenAIModel]) -> OpenAIModel:
    return make()
