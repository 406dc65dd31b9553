"""Waiting for the model: the real service as a process, and a scripted model server that limits or restarts."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.scripted_openai import Call, Reply, ScriptedOpenAI, Status, agent_script
from tests.support.service import ApiClient, ServiceProcess

LIMITED = Status(status=429, body={"error": {"message": "slow down"}}, headers={"retry-after": "60"})
STOP_SECONDS = 1.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedOpenAI]:
    with ScriptedOpenAI() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(model: ScriptedOpenAI, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiClient]:
    service = ServiceProcess(
        tmp_path_factory.mktemp("service") / "data",
        API_KEY="k",
        API_BASE=model.url,
        MODEL_NAME="scripted",
        SANDBOX_PROVIDER="local",
    )
    client = await service.start()
    yield client
    await client.close()
    await service.stop()


@pytest.mark.parametrize("kind", ["planning", "executing", "final"])
async def test_wait_for_a_rate_limit_is_shown_and_ended_by_stop_at_once(
    client: ApiClient, model: ScriptedOpenAI, kind: str
) -> None:
    usual = agent_script(steps=1)
    model.reset(lambda asked: LIMITED if asked.kind == kind else usual(asked))
    session = await client.create_session()
    chat = await client.send_message(session, "Go", stream=True)
    status = await chat.wait_for("status_delta")
    assert status.id is None
    assert "limits requests (HTTP 429)" in status.data["text"]
    assert status.data["retry_in"] >= 60
    started_at = time.monotonic()
    await client.stop_run(session)
    assert time.monotonic() - started_at < STOP_SECONDS
    assert (await chat.read_all())[-1].event == "done"
    assert "status_delta" not in {event["event"] for event in (await client.get_session(session))["events"]}


async def test_stream_without_deltas_gets_no_status(client: ApiClient, model: ScriptedOpenAI) -> None:
    soon = Status(status=503, body={"error": {"message": "Loading model"}}, headers={"retry-after": "0"})
    hello = Reply(calls=[Call("create_plan", {"title": "T", "message": "Hello.", "goal": "", "steps": []})])
    model.reset([soon, hello])
    frames = await client.send_and_read(await client.create_session(), "Go")
    assert [frame.event for frame in frames] == ["title", "message", "done"]
    assert len(model.asked) == 2


async def test_run_continues_when_the_model_server_is_started_again(tmp_path: Path) -> None:
    with ScriptedOpenAI() as gone:
        address = gone.url
    service = ServiceProcess(
        tmp_path / "data", API_KEY="k", API_BASE=address, MODEL_NAME="scripted", SANDBOX_PROVIDER="local"
    )
    client = await service.start()
    chat = await client.send_message(await client.create_session(), "Go", stream=True)
    status = await chat.wait_for("status_delta")
    assert "cannot be reached" in status.data["text"]
    with ScriptedOpenAI(agent_script(steps=1), port=int(address.rpartition(":")[2].removesuffix("/v1"))):
        assert (await asyncio.wait_for(chat.read_all(60), 60))[-1].event == "done"
    await client.close()
    await service.stop()
