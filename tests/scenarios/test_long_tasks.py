"""Tasks of many turns in a window that holds few of them."""

from pathlib import Path

import pytest

from tests.scenarios.harness import REPLY_TOKENS, WINDOW, Print, open_scenario
from tests.support.task_models import WORD, Task, TaskModel

MIN_IDENTICAL_SHARE = 0.85
"""Minimum share of all prompt bytes of a run that repeat the request before."""


@pytest.mark.parametrize("few_calls", [True, False], ids=["few calls", "one call a turn"])
async def test_task_that_fits_into_the_window(few_calls: bool, tmp_path: Path, record_property: Print) -> None:
    task = Task(steps=3, turns=4)
    async with open_scenario(TaskModel(task, few_calls=few_calls), tmp_path) as scenario:
        frames = await scenario.say()
        scenario.print(record_property, f"12 turns, {'few calls' if few_calls else 'plain'}")
    assert [frame.event for frame in frames][-2:] == ["message", "done"]
    assert frames[-2].data["content"].endswith(WORD)
    assert scenario.figures.identical_share >= MIN_IDENTICAL_SHARE
    assert scenario.figures.largest_prompt <= WINDOW - REPLY_TOKENS
    assert not scenario.figures.overflows
