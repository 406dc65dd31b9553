"""Runs at their limits: model calls, polling, messages and windows that do not fit."""

from pathlib import Path

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply
from tests.scenarios.harness import WINDOW, Print, open_scenario
from tests.scenarios.malice import complete, malicious, shell
from tests.support.task_models import Task, TaskModel, final_answer, is_compaction


async def test_run_rests_at_its_limit_and_goes_on_after_the_next_message(
    tmp_path: Path, record_property: Print
) -> None:
    task = Task(steps=5, turns=30)
    async with open_scenario(TaskModel(task), tmp_path, run_max_calls=100) as scenario:
        frames = await scenario.say()
        assert [frame.event for frame in frames][-2:] == ["message", "wait"]
        assert frames[-1].data["usage"]["model_calls"] <= 100
        assert 90 <= scenario.figures.calls <= 100
        scenario.print(record_property, "150 turns, before the limit")
        frames = await scenario.say("Go on.")
        scenario.print(record_property, "150 turns, whole run")
        await scenario.check_done(frames)
    assert scenario.figures.calls <= 200


async def test_polling_of_something_that_changes_is_no_loop(tmp_path: Path) -> None:
    def executing(number: int) -> Reply:
        return Reply(calls=[shell("poll")]) if number <= 30 else Reply(calls=[complete()])

    async with open_scenario(malicious(executing, steps=1), tmp_path) as scenario:
        frames = await scenario.say()
        await scenario.check_done(frames)
    assert not any(frame.data["status"] == "failed" for frame in frames if frame.event == "step")
    assert scenario.figures.calls == 33


async def test_server_that_counts_more_tokens_than_expected_is_learnt_from(
    tmp_path: Path, record_property: Print
) -> None:
    task = Task(steps=5, turns=20)
    async with open_scenario(TaskModel(task), tmp_path, bytes_per_token=1.5) as scenario:
        frames = await scenario.say()
        scenario.print(record_property, "100 turns, 1.5 bytes a token")
        await scenario.check_done(frames)
    assert scenario.figures.overflows <= 5


async def test_message_larger_than_the_window_gets_an_error_that_says_so(tmp_path: Path) -> None:
    async with open_scenario(TaskModel(Task(steps=1, turns=1)), tmp_path) as scenario:
        frames = await scenario.say("All of this: " + "word " * WINDOW)
        assert frames[-1].event == "error"
        assert "too long" in frames[-1].data["error"]
        assert scenario.figures.calls <= 2
        await scenario.check_done(await scenario.say())


async def test_conversation_of_many_messages_keeps_its_first_fact(tmp_path: Path, record_property: Print) -> None:
    def answer(asked: Asked) -> Answer:
        if is_compaction(asked):
            return Reply(text="The user sent a lot of text.")
        plan = {"title": "T", "message": "Noted. " * 60 + final_answer(asked), "goal": "", "steps": []}
        return Reply(calls=[Call("create_plan", plan)])

    async with open_scenario(answer, tmp_path) as scenario:
        await scenario.say()
        for number in range(60):
            frames = await scenario.say(f"Item {number}: " + "some more text to remember. " * 60)
            assert frames[-1].event == "done", frames[-1]
        scenario.print(record_property, "60 long messages")
        await scenario.check_done(frames)
    assert not scenario.figures.overflows
    assert scenario.figures.identical_share >= 0.7
