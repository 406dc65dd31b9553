"""A long task by a model that slips in every third turn."""

import random
from pathlib import Path

from tests.scenarios.harness import Print, open_scenario
from tests.scenarios.slips import DISTORTED, USELESS, SlippingModel
from tests.support.task_models import Task, TaskModel

MIN_IDENTICAL_SHARE = 0.85
"""Minimum share of all prompt bytes of a run that repeat the request before."""


async def test_model_that_slips_completes_a_task_of_100_turns(tmp_path: Path, record_property: Print) -> None:
    task = Task(steps=5, turns=20)
    model = SlippingModel(TaskModel(task, few_calls=True), random.Random(10), share=1 / 3)
    async with open_scenario(model, tmp_path, run_max_calls=400) as scenario:
        frames = await scenario.say()
        scenario.print(record_property, f"100 turns, {sum(model.slips.values())} slips")
        await scenario.check_done(frames)
    assert model.slips.keys() == {*DISTORTED, *USELESS}, "the test is too short to show every slip"
    assert scenario.figures.calls <= 250
    assert not scenario.figures.overflows
    assert scenario.figures.identical_share >= MIN_IDENTICAL_SHARE
    shown = "".join(str(frame.data.get("content", "")) for frame in frames if frame.event == "message")
    assert "tool_call" not in shown and "think" not in shown
