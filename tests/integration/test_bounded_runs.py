"""Runs of badly behaving models end or rest: the real service, a local sandbox, and a scripted model server."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply, ScriptedOpenAI, Status
from tests.support.service import ApiClient, ServiceProcess

STEPS = [{"id": "1", "description": "one"}]
PLAN = Reply(calls=[Call("create_plan", {"title": "T", "message": "M", "goal": "G", "steps": STEPS})])
ANSWERED = {"success": True, "result": "r", "answer": "All is done."}

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
        RUN_MAX_CALLS="20",
    )
    client = await service.start()
    yield client
    await client.close()
    await service.stop()


def shell(command: str) -> Call:
    return Call("shell_exec", {"id": "a", "exec_dir": "~", "command": command})


async def run(client: ApiClient, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    frames = await client.send_and_read(await client.create_session(), "Go", **more)
    return [(frame.event, frame.data) for frame in frames]


async def test_same_call_for_ever_fails_the_step(client: ApiClient, model: ScriptedOpenAI) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.kind == "planning":
            return PLAN
        return Reply(calls=[shell("echo same")]) if asked.kind == "executing" else Reply(text="It did not work.")

    model.reset(answer)
    events = await run(client)
    assert sum(kind == "tool" and data["status"] == "calling" for kind, data in events) == 6
    assert ("step", "failed") in [(kind, data.get("status")) for kind, data in events]
    assert events[-1][0] == "done"


async def test_new_work_for_ever_rests_at_the_limit_and_goes_on_with_the_next_message(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.kind == "planning":
            return PLAN
        return Reply(calls=[shell(f"echo {len(model.asked)}")])

    model.reset(answer)
    session = await client.create_session()
    frames = await client.send_and_read(session, "Go")
    assert [frame.event for frame in frames[-2:]] == ["message", "wait"]
    assert "RUN_MAX_CALLS" in frames[-2].data["content"]
    assert frames[-1].data["usage"]["model_calls"] == len(model.asked) == 20
    assert (await client.get_session(session))["status"] == "waiting"
    model.reset([Reply(calls=[Call("complete_step", ANSWERED)])])
    frames = await client.send_and_read(session, "go on")
    assert [frame.event for frame in frames[-2:]] == ["message", "done"]
    assert "go on" in str(model.asked[0].messages[-1]["content"])


async def test_answer_with_the_last_step_streams_and_ends_the_run(client: ApiClient, model: ScriptedOpenAI) -> None:
    model.reset([PLAN, Reply(calls=[Call("complete_step", ANSWERED)], size=10)])
    events = await run(client, stream=True)
    deltas = [data["delta"] for kind, data in events if kind == "message_delta"]
    assert "".join(deltas).endswith(ANSWERED["answer"])
    assert events[-2][1]["content"] == ANSWERED["answer"]
    assert len(model.asked) == 2


async def test_cut_answer_is_continued(client: ApiClient, model: ScriptedOpenAI) -> None:
    done = Reply(calls=[Call("complete_step", {"success": True, "result": "r"})])
    model.reset([PLAN, done, Reply(text="The file con", finish="length"), Reply(text="tains three lines.")])
    events = await run(client)
    assert events[-2][1]["content"] == "The file contains three lines."


async def test_slip_that_the_server_rejects_is_corrected(client: ApiClient, model: ScriptedOpenAI) -> None:
    error = {"message": "Failed to call a function", "code": "tool_use_failed", "failed_generation": "<function=x"}
    rejected = Status(status=400, body={"error": error})
    model.reset([PLAN, rejected, Reply(calls=[Call("complete_step", ANSWERED)])])
    events = await run(client)
    assert events[-1][0] == "done"
    assert "<function=x" in str(model.asked[-1].messages[-1]["content"])


async def test_double_encoded_arguments_run_and_events_show_the_repaired_ones(
    client: ApiClient, model: ScriptedOpenAI
) -> None:
    encoded = Call("shell_exec", '"{\\"id\\": 1, \\"exec_dir\\": \\"~\\", \\"command\\": \\"echo ok\\"}"')
    model.reset([PLAN, Reply(calls=[encoded]), Reply(calls=[Call("complete_step", ANSWERED)])])
    events = await run(client)
    args = next(data["args"] for kind, data in events if kind == "tool")
    assert args == {"id": "1", "exec_dir": "~", "command": "echo ok"}
