"""A run rests at a limit with a message, and the next message of the user grants the same again."""

from dataclasses import replace

import pytest

from app.domain.external.llm import ModelReply
from app.domain.models.message import Usage, UserMessage
from app.domain.services.agents.limits import RunLimits
from tests.fakes.scripted_llm import (
    RecordedRequest,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import ScriptedSession


def works_on(request: RecordedRequest) -> ModelReply:
    """Reply with new work for ever."""
    if request.kind == "planning":
        return creates_plan("one", "two")
    return runs_command(f"look {len(request.messages)}") if request.kind == "executing" else says("A")


async def test_run_rests_after_its_model_calls_and_the_next_message_continues_the_step() -> None:
    session = await ScriptedSession(works_on, limits=RunLimits(max_calls=5)).send("build it")
    assert len(session.model.requests) == 5
    *_, (kind, message), (last, wait) = await session.events()
    assert (kind, last) == ("message", "wait")
    assert wait["usage"]["model_calls"] == 5
    for part in ("5 model calls (RUN_MAX_CALLS)", "Not finished:\n- one", "Not started:\n- two", "go on"):
        assert part in message["content"]
    await session.send("go on")
    assert len(session.model.requests) == 10
    resumed = session.model.requests[5]
    assert resumed.kind == "executing"
    assert isinstance(resumed.messages[-1], UserMessage)
    assert "go on" in resumed.messages[-1].content
    assert (await session.store.get("s", owner="")).status == "waiting"
    await session.check(ended=False)


async def test_steps_beyond_the_limit_wait_for_the_next_message() -> None:
    plan = creates_plan(*(f"step {number}" for number in range(1, 6)))
    turn = calls(("complete_step", {"success": True, "result": "r"}), ("file_read", {"file": "x"}))
    script = [plan, *([turn] * 3), *([completes_step()] * 2), says("A")]
    session = await ScriptedSession(script, limits=RunLimits(max_steps=3)).send()
    assert (await session.outline())[-2:][1] == "wait"
    running = [line for line in await session.outline() if line.endswith("running")]
    assert running == ["step 1 running", "step 2 running", "step 3 running", "step 4 running"]
    assert sum(line == "file_read calling" for line in await session.outline()) == 2
    await session.send("go on")
    assert (await session.outline())[-2:] == ["message A", "done"]
    await session.check()


async def test_complete_step_that_always_adds_a_step_is_bounded() -> None:
    def respond(request: RecordedRequest) -> ModelReply:
        if request.kind == "planning":
            return creates_plan("zero")
        more = {"steps": [{"id": "", "description": f"more {len(request.messages)}"}]}
        return completes_step(plan_changes=more) if request.kind == "executing" else says("A")

    session = await ScriptedSession(respond).send()
    assert (await session.outline())[-1] == "wait"
    assert len(session.model.requests) == 31


async def test_step_that_is_planned_again_and_again_is_dropped() -> None:
    def respond(request: RecordedRequest) -> ModelReply:
        if request.kind == "planning":
            return creates_plan("look again")
        more = {"steps": [{"id": "", "description": "Look  again"}]}
        return completes_step(plan_changes=more) if request.kind == "executing" else says("A")

    session = await ScriptedSession(respond).send()
    assert (await session.outline())[-2:] == ["message A", "done"]
    assert sum(line.endswith("running") for line in await session.outline()) == 5
    assert "dropped" in session.model.requests[-2].messages[-1].content


async def test_token_budget_rests_the_run() -> None:
    def respond(request: RecordedRequest) -> ModelReply:
        reply = works_on(request)
        return ModelReply(
            tool_calls=reply.tool_calls, usage=Usage(calls=1, prompt_tokens=90, completion_tokens=10, cost=0.5)
        )

    session = await ScriptedSession(respond, limits=RunLimits(token_budget=250)).send()
    assert len(session.model.requests) == 3
    message = (await session.events())[-2][1]["content"]
    assert "250 tokens (RUN_TOKEN_BUDGET)" in message
    assert "3 model calls, 300 tokens, cost 1.5000" in message


@pytest.mark.parametrize("limit", [1, 2])
async def test_limit_while_planning_or_answering_rests_and_the_next_message_is_planned_for(limit: int) -> None:
    if limit == 1:
        script = [says("prose"), creates_plan(message="Answered.")]
    else:
        script = [creates_plan("one"), completes_step(result="found it"), creates_plan(message="Answered.")]
    session = await ScriptedSession(script, limits=RunLimits(max_calls=limit)).send("build it")
    assert (await session.outline())[-1] == "wait"
    await session.send("go on")
    assert (await session.outline())[-2:] == ["message Answered.", "done"]
    text = "\n".join(message.content for message in session.model.requests[-1].messages)
    assert "build it" in text
    assert "found it" in text or limit == 1
    await session.check()


async def test_answer_to_a_question_grants_the_limits_anew() -> None:
    ask = calls(("message_ask_user", {"text": "Which?"}))
    script = [creates_plan("one"), runs_command("x"), ask, runs_command("y"), completes_step(answer="A")]
    session = await ScriptedSession(script, limits=RunLimits(max_calls=3)).send()
    await session.send("this one")
    assert (await session.outline())[-2:] == ["message A", "done"]
    assert (await session.events())[-1][1]["usage"]["model_calls"] == 2


async def test_limits_hold_across_crashes() -> None:
    session = ScriptedSession(works_on, limits=RunLimits(max_calls=6))
    await session.send()
    for _ in range(3):
        await session.work()
    assert len(session.model.requests) == 6


async def test_run_rests_at_the_tokens_of_the_day_and_goes_on_the_next_day() -> None:
    usage = Usage(prompt_tokens=90, completion_tokens=10, calls=1)
    model = lambda request: replace(works_on(request), usage=usage)  # noqa: E731
    session = await ScriptedSession(model, limits=RunLimits(tokens_per_day=300)).send("build it")
    assert len(session.model.requests) == 3
    *_, (kind, message), (last, _) = await session.events()
    assert (kind, last) == ("message", "wait")
    for part in ("300 tokens a day (LIMIT_TOKENS_PER_DAY)", "after 00:00 UTC", "Not finished:\n- one"):
        assert part in message["content"]
    await session.send("go on")
    assert len(session.model.requests) == 3
    day, tokens = session.store.daily_tokens[""]
    session.store.daily_tokens[""] = (day - 1, tokens)  # a night passes
    await session.send("go on")
    assert len(session.model.requests) == 6
    assert session.model.requests[3].kind == "executing"
    await session.check(ended=False)
