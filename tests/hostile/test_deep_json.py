"""JSON of a model that is nested deeper than any program needs, wherever the service parses it."""

from collections.abc import AsyncIterator, Callable

import pytest

from app.domain.errors import SandboxUnavailable
from app.domain.models.model_profile import ModelProfile
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.sandbox.client.api_client import open_envelope
from app.infrastructure.sandbox.client.responses import parse_shell_state
from tests.contract.llm.test_strict_runs import DONE, RUN, StrictSession
from tests.fakes.scripted_openai import Call, Reply, ScriptedOpenAI

DEPTHS = [260, 850, 2_000]


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


SHAPES = {
    "lists": lists,
    "objects": objects,
    "unclosed": lambda depth: '{"a":' * depth,
    "python": lambda depth: "{'a': " * depth + "None" + "}" * depth,
}


@pytest.fixture
async def session() -> AsyncIterator[StrictSession]:
    with ScriptedOpenAI() as server:
        model = OpenAIModel(
            api_key="k", base_url=server.url, model="m", profile=ModelProfile(model="m"), timeout_seconds=10
        )
        session = StrictSession(server, model)
        await session.open()
        yield session
        await session.queue.close()
        await model.close()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("depth", DEPTHS)
async def test_deep_arguments_are_told_to_the_model_and_the_run_goes_on(
    session: StrictSession, shape: Callable[[int], str], depth: int
) -> None:
    deep = shape(depth)
    calls = [
        Call("shell_exec", deep),
        Call("shell_exec", f'{{"id": {deep}, "exec_dir": "/", "command": "true"}}'),
        Call("file_write", f'{{"file": "x", "content": {deep}}}'),
        Call("complete_step", f'{{"success": true, "result": "r", "plan_changes": {deep}}}'),
        Call("no_such_function", deep),
    ]
    plan = Call("create_plan", {"message": "m", "steps": [{"id": "1", "description": "d"}]})
    # The run ends after several unusable replies in a row, so every second one is good.
    wanted = [Call("create_plan", f'{{"message": "m", "steps": {deep}}}'), plan]
    wanted += [each for call in calls for each in (call, RUN)]
    session.server.script = [*(Reply(calls=[call]) for call in (*wanted, DONE)), *[Reply(text="Done.")] * 3]
    assert await session.run() == "done"


@pytest.mark.parametrize("depth", DEPTHS)
def test_deep_response_of_a_sandbox_is_malformed(depth: int) -> None:
    body = f'{{"success": true, "message": "", "data": {{"output": {lists(depth)}, "returncode": {lists(depth)}}}}}'
    with pytest.raises(SandboxUnavailable, match="malformed"):
        parse_shell_state(open_envelope(200, body.encode()), "main")
