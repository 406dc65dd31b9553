"""A model that goes in a circle is told, and then its step fails; waiting and polling are no circles."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.external.llm import ModelReply
from app.domain.models.message import UserMessage
from app.domain.prompts import executing
from app.domain.services.agents.circles import FAILED_AT, REMEMBERED_TURNS, TOLD_AT, repetitions
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.scripted_llm import (
    RecordedRequest,
    calls,
    completes_step,
    creates_plan,
    runs_command,
    says,
)
from tests.support.agent_runs import ScriptedSession

SAME = runs_command("same")
OTHER = calls(("file_find_by_name", {"path": "~", "glob": "*"}))
THIRD = calls(("message_notify_user", {"text": "working"}))
Turn = Callable[[int], ModelReply]


def cycle(*replies: ModelReply) -> Turn:
    return lambda number: replies[number % len(replies)]


def numbered(text: str) -> Turn:
    return lambda number: runs_command(text.format(number))


async def run_with(turn: Turn, *, sandboxes: MemorySandboxProvider | None = None) -> tuple[ScriptedSession, int, int]:
    """Run a plan of one step that the model never completes.

    Return the session, the number of turns of the step, and how often the model was told.
    """
    count = 0

    def respond(request: RecordedRequest) -> ModelReply:
        nonlocal count
        if request.kind == "planning":
            return creates_plan("one")
        if request.kind == "answering":
            return says("A")
        count += 1
        return turn(count - 1)

    session = await ScriptedSession(respond, sandboxes=sandboxes or MemorySandboxProvider()).send()
    transcript = await session.store.load_transcript("s", "executor")
    told = sum(isinstance(m, UserMessage) and m.content == executing.CIRCLE for m in transcript)
    await session.check(ended=(await session.outline())[-1] == "done")
    return session, count, told


@pytest.mark.parametrize("period", [1, 2, 3])
async def test_same_turns_with_the_same_results_are_told_and_then_fail_the_step(period: int) -> None:
    session, turns, told = await run_with(cycle(*[SAME, OTHER, THIRD][:period]))
    assert (turns, told) == (FAILED_AT * period, 1)
    outline = await session.outline()
    assert outline[-4:] == ["step 1 failed", "plan", "message A", "done"]
    assert executing.CIRCLE_ENDED in session.model.requests[-1].messages[-1].content


@pytest.mark.parametrize("call", [OTHER, THIRD])
async def test_text_in_turn_with_a_harmless_call_fails_the_step(call: ModelReply) -> None:
    _, turns, told = await run_with(cycle(says("I will look."), call))
    assert (turns, told) == (2 * FAILED_AT, 1)


async def test_text_in_turn_with_various_calls_fails_the_step() -> None:
    _, turns, _ = await run_with(lambda n: says(f"Thought {n}.") if n % 2 else runs_command(f"look {n}"))
    assert turns == 20


async def test_failing_call_with_trivially_different_arguments_fails_the_step() -> None:
    def turn(number: int) -> ModelReply:
        return calls(("file_read", {"file": f"{'./' * (number % 2)}missing-{number}.txt"}))

    _, turns, told = await run_with(turn)
    assert (turns, told) == (FAILED_AT, 1)


async def test_failing_command_with_an_attempt_number_fails_the_step() -> None:
    sandboxes = MemorySandboxProvider()
    sandbox = await sandboxes.acquire("s")
    for number in range(10):
        sandbox.script(f"make # attempt {number}", output="no rule", returncode=2)
    _, turns, _ = await run_with(numbered("make # attempt {}"), sandboxes=sandboxes)
    assert turns == FAILED_AT


async def test_invalid_call_in_turn_with_a_harmless_one_fails_the_step() -> None:
    _, turns, _ = await run_with(cycle(calls(("python.run", "{")), OTHER))
    assert turns == 2 * FAILED_AT


async def test_commands_that_differ_are_no_circle() -> None:
    def turn(number: int) -> ModelReply:
        return runs_command(f"mkdir d{number}") if number < 20 else completes_step(answer="A")

    _, turns, told = await run_with(turn)
    assert (turns, told) == (21, 0)


async def test_polling_something_that_changes_is_no_circle() -> None:
    sandboxes = MemorySandboxProvider()
    sandbox = await sandboxes.acquire("s")

    def turn(number: int) -> ModelReply:
        sandbox.script("status", output=f"{number} %")
        return runs_command("status") if number < 20 else completes_step(answer="A")

    _, turns, told = await run_with(turn, sandboxes=sandboxes)
    assert (turns, told) == (21, 0)


@pytest.mark.parametrize("waiter", ["shell_wait", "shell_view"])
async def test_waiting_for_a_running_command_is_no_circle(waiter: str) -> None:
    sandboxes = MemorySandboxProvider()
    (await sandboxes.acquire("s")).script("build", runs=True, output="building")

    def turn(number: int) -> ModelReply:
        if number == 0:
            return runs_command("build")
        if number < 40:
            return calls((waiter, {"id": "a", **({"seconds": 0} if waiter == "shell_wait" else {})}))
        return completes_step(answer="A")

    _, turns, told = await run_with(turn, sandboxes=sandboxes)
    assert (turns, told) == (41, 0)


async def test_circle_is_recognised_across_crashes() -> None:
    class ProcessDied(BaseException):
        pass

    turns = 0

    def respond(request: RecordedRequest) -> ModelReply:
        nonlocal turns
        if request.kind != "executing":
            return creates_plan("one") if request.kind == "planning" else says("A")
        turns += 1
        if turns % 3 == 0:
            raise ProcessDied
        return SAME

    session = ScriptedSession(respond)
    await session.store.create("s", owner="", at=1)
    await session.store.append_user_message("s", "do it", at=1, key=None)
    for _ in range(10):
        try:
            await session.work()
            break
        except ProcessDied:
            continue
    assert "step 1 failed" in await session.outline()
    assert turns <= 3 * FAILED_AT
    await session.check()


@given(turns=st.lists(st.sampled_from("ab"), max_size=REMEMBERED_TURNS))
def test_turns_that_are_repeated_often_enough_are_recognised_after_any_beginning(turns: list[str]) -> None:
    for block in (["x"], ["x", "y"], ["x", "y", "z"], ["x", "x", "y", "z"]):
        assert repetitions([*turns, *block * TOLD_AT]) == TOLD_AT
        assert repetitions([*turns, *block * FAILED_AT][-REMEMBERED_TURNS:]) == FAILED_AT


@pytest.mark.parametrize("turns", [[], ["a"], ["a", "b", "c", "d", "e", "f", "g"]])
def test_new_turns_are_no_repetition(turns: Sequence[str]) -> None:
    assert repetitions(turns) == 1
