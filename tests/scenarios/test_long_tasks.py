"""Tasks of many turns in a window that holds few of them."""

from pathlib import Path

import pytest

from tests.scenarios.harness import Print, open_scenario
from tests.support.task_models import Task, TaskModel

MODELS: dict[str, tuple[Task, bool, float]] = {
    "12 turns, few calls": (Task(steps=3, turns=4), True, 0.85),
    "12 turns, one call a turn": (Task(steps=3, turns=4), False, 0.85),
    "100 turns of two calls, few calls": (Task(steps=10, turns=10, parallel=2), True, 0.8),
    "100 turns, one call a turn": (Task(steps=10, turns=10), False, 0.9),
    "500 turns, few calls": (Task(steps=20, turns=25), True, 0.9),
}
"""Tasks; whether the model uses every way to save a call; minimum share of prompt bytes that repeat the request before.

The share is the smaller, the larger a turn is beside the window.
"""


@pytest.mark.parametrize("name", MODELS)
async def test_task_of_any_length_is_completed(name: str, tmp_path: Path, record_property: Print) -> None:
    task, few_calls, identical_share = MODELS[name]
    async with open_scenario(TaskModel(task, few_calls=few_calls), tmp_path, run_max_calls=1_000) as scenario:
        frames = await scenario.say()
        scenario.print(record_property, name)
        await scenario.check_done(frames)
    assert not scenario.figures.overflows
    assert scenario.figures.identical_share >= identical_share
