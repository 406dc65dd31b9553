"""Turns that end a step and begin the next one, and answers that come with the last step."""

from typing import Any

import pytest

from app.domain.external.llm import ModelReply
from app.domain.models.message import ToolMessage
from app.domain.models.model_profile import ModelProfile
from app.domain.prompts import executing
from tests.fakes.memory_store import MemoryStore
from tests.fakes.scripted_llm import (
    RecordedRequest,
    Respond,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import ScriptedSession

Call = tuple[str, dict[str, Any]]
END: Call = ("complete_step", {"success": True, "result": "r"})


def command(text: str) -> Call:
    return ("shell_exec", {"id": "a", "exec_dir": "~", "command": text})


def results(request: RecordedRequest) -> list[str]:
    """Return the tool results at the end of a request."""
    found: list[str] = []
    for message in reversed(request.messages):
        if not isinstance(message, ToolMessage):
            break
        found.append(message.content)
    return found[::-1]


async def test_calls_after_complete_step_belong_to_the_next_step() -> None:
    session = await ScriptedSession(
        [creates_plan("one", "two"), calls(END, command("x")), completes_step(), says("A")]
    ).send()
    assert (await session.outline())[2:] == [
        "step 1 running",
        "step 1 completed",
        "plan",
        "step 2 running",
        "x calling",
        "x called",
        "step 2 completed",
        "plan",
        "message A",
        "done",
    ]
    assert results(session.model.requests[2])[0] == "Do step 2 now: two"
    await session.check()


async def test_turn_may_complete_several_steps() -> None:
    turn = calls(command("1"), END, command("2"), END, command("3"), ("complete_step", {**END[1], "answer": "A"}))
    session = await ScriptedSession([creates_plan("one", "two", "three"), turn]).send()
    steps = [line for line in await session.outline() if not line.startswith(("plan", "message"))]
    assert steps == [
        *("step 1 running", "1 calling", "1 called", "step 1 completed"),
        *("step 2 running", "2 calling", "2 called", "step 2 completed"),
        *("step 3 running", "3 calling", "3 called", "step 3 completed", "done"),
    ]
    await session.check()


async def test_complete_step_written_twice_ends_one_step() -> None:
    session = await ScriptedSession([creates_plan("one", "two"), calls(END, END), completes_step(), says("A")]).send()
    assert len(session.model.requests) == 4
    await session.check()


async def test_calls_after_the_last_step_are_not_run() -> None:
    session = await ScriptedSession([creates_plan("one"), calls(END, command("x")), says("A")]).send()
    assert "x calling" not in await session.outline()
    await session.check()


async def test_answer_of_the_last_step_is_the_final_message_without_another_call() -> None:
    session = await ScriptedSession([creates_plan("one"), completes_step(answer=" Done. ")]).send()
    assert (await session.outline())[-2:] == ["message Done.", "done"]
    assert [m.content for m in await session.store.load_transcript("s", "planner")][-1] == "Done."
    assert (await session.events())[-1][1]["usage"]["model_calls"] == 2
    await session.check()


async def test_answer_is_ignored_while_steps_remain() -> None:
    script = [creates_plan("one", "two"), completes_step(answer="early"), completes_step(), says("late")]
    session = await ScriptedSession(script).send()
    outline = await session.outline()
    assert "message early" not in outline
    assert outline[-2:] == ["message late", "done"]


async def test_answer_is_ignored_if_the_plan_changes_add_a_step() -> None:
    more = completes_step(answer="early", plan_changes={"steps": [{"id": "2", "description": "two"}]})
    session = await ScriptedSession([creates_plan("one"), more, completes_step(), says("late")]).send()
    assert (await session.outline())[-2:] == ["message late", "done"]


async def test_answer_is_published_while_the_model_writes_it() -> None:
    session = ScriptedSession([creates_plan("one"), completes_step(answer="A long answer in pieces.")])
    published: list[str] = []
    session.feed.publish_delta = lambda session_id, delta: published.append(delta.delta)  # type: ignore[method-assign]
    await session.send()
    assert len(published) > 2
    assert "".join(published) == "MA long answer in pieces."


async def test_question_precedes_the_end_of_the_last_step() -> None:
    turn = calls(END, command("x"), ("message_ask_user", {"text": "Which?"}))
    session = await ScriptedSession([creates_plan("one"), turn, completes_step(answer="A")]).send()
    assert (await session.outline())[-4:] == ["x calling", "x called", "message Which?", "wait"]
    await session.send("this one")
    assert (await session.outline())[-1] == "done"
    await session.check()


async def test_question_after_complete_step_is_asked_in_the_next_step() -> None:
    turn = calls(END, ("message_ask_user", {"text": "Which?"}))
    session = await ScriptedSession([creates_plan("one", "two"), turn, completes_step(answer="A")]).send()
    assert (await session.outline())[-3:] == ["step 2 running", "message Which?", "wait"]
    await session.send("this one")
    await session.check()


class ProcessDied(BaseException):
    """Ends an attempt as the death of its process would."""


class DyingStore(MemoryStore):
    """A store whose process dies after a number of commits."""

    commits_left = 1_000

    async def commit(self, session_id: str, commit: Any) -> Any:
        if self.commits_left == 0:
            raise ProcessDied
        self.commits_left -= 1
        return await super().commit(session_id, commit)


@pytest.mark.parametrize("commits", range(1, 9))
async def test_crash_within_a_turn_of_two_steps_neither_loses_nor_repeats_a_call(commits: int) -> None:
    """The process dies after each commit in turn; the model then does what it is told was not done."""

    def respond(request: RecordedRequest) -> ModelReply:
        if request.kind == "planning":
            return creates_plan("one", "two")
        if request.kind == "answering":
            return says("A")
        text = "\n".join(m.content for m in request.messages)
        if "Do step 2 now" not in text:
            return calls(command("1"), END, command("2"))
        done = any("out of 2" in m.content or "whether it took" in m.content for m in request.messages)
        return completes_step(answer="A") if done else runs_command("2")

    session = ScriptedSession(respond, store=DyingStore())
    sandbox = await session.sandboxes.acquire("s")
    for text in ("1", "2"):
        sandbox.script(text, output=f"out of {text}")
    assert isinstance(session.store, DyingStore)
    session.store.commits_left = commits
    died = False
    try:
        await session.send()
    except BaseException as error:
        assert isinstance(error, ProcessDied)
        died = True
    session.store.commits_left = 1_000
    await session.work()
    outline = await session.outline()
    assert outline[-1] == "done"
    assert sum(line == "2 calling" for line in outline) == 1
    assert sum(line == "step 1 completed" for line in outline) == 1
    assert died == (commits < 8)
    await session.check()


@pytest.mark.parametrize("parallel", [True, False])
async def test_only_a_model_with_parallel_calls_is_encouraged_to_make_them(parallel: bool) -> None:
    session = ScriptedSession([creates_plan("one"), completes_step(answer="A")])
    session.model.profile = ModelProfile(model="m", identity="m", parallel_calls=parallel)
    await session.send()
    description = next(spec.description for spec in session.model.requests[1].specs if spec.name == "complete_step")
    assert (executing.SEVERAL_CALLS in description) == parallel


def long_task(*, uses_all: bool) -> Respond:
    """Return a model that carries out 5 steps of 4 calls, one call a turn."""
    turns: list[list[Call]] = []
    for step in range(5):
        work: list[list[Call]] = [[command(f"{step}.{number}")] for number in range(4)]
        if uses_all and turns:
            work[0].insert(0, END)
        turns += work if uses_all else [*work, [END]]
    if uses_all:
        turns.append([("complete_step", {**END[1], "answer": "A"})])
    remaining = iter(turns)

    def respond(request: RecordedRequest) -> ModelReply:
        if request.kind == "planning":
            return creates_plan("1", "2", "3", "4", "5")
        return says("A") if request.kind == "answering" else calls(*next(remaining))

    return respond


@pytest.mark.parametrize(("uses_all", "expected"), [(True, 22), (False, 27)])
async def test_five_steps_of_four_calls_take_few_model_calls(uses_all: bool, expected: int) -> None:
    session = await ScriptedSession(long_task(uses_all=uses_all)).send()
    assert len(session.model.requests) == expected
    assert sum(line.endswith("calling") for line in await session.outline()) == 20
    assert (await session.outline())[-2:] == ["message A", "done"]
    await session.check()
