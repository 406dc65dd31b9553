"""One process over SQLite, killed and started again over the same folder. CHAOS_SEED plays a storm again."""

import itertools
import random
from pathlib import Path

import pytest

from tests.chaos.checks import check_lives
from tests.chaos.conftest import KILLS, KILLS_A_STORM, Settings
from tests.chaos.lives import Life
from tests.chaos.storm import Storm, live_through, longest_silence, moments
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SharedSandbox, leftovers, none_left, running
from tests.support.marking import MarkingModel

STORMS = max(1, KILLS // 2 // KILLS_A_STORM)


@pytest.mark.parametrize("number", range(STORMS))
async def test_nothing_is_lost_and_nothing_done_twice_however_often_the_process_dies(
    model: ScriptedOpenAI, settings: Settings, seed: str, tmp_path: Path, number: int
) -> None:
    marks, storm_seed = tmp_path / "marks", f"{seed}-one-{number}"
    script = MarkingModel(random.Random(storm_seed), marks, slow=0.3)
    model.reset(script)
    # Sometimes a sandbox that outlives the process, so that what was under way in it goes on.
    lasting = random.Random(storm_seed).random() < 0.5
    sandbox = SharedSandbox(tmp_path / "sandbox") if lasting else None
    numbers = itertools.count()
    async with Cluster(tmp_path / "cluster", {"one": ""}, settings, sandbox=sandbox) as cluster:
        storm = Storm(cluster, storm_seed, kills=min(KILLS_A_STORM, KILLS // 2), counts=moments(model, marks))
        lives = await live_through(
            cluster, storm, lambda: Life(cluster, script, f"{storm_seed}-{next(numbers)}"), at_once=4
        )
        await check_lives(cluster, lives, model.asked, marks)
        silence = longest_silence(cluster, lives)
        print(f"{len(lives)} sessions, {storm.kills} deaths, longest silence {silence:.2f} s")
        assert silence < cluster.patience(20)
        await cluster.stop()
        lengths = [length for life in lives if life.endless and life.certain for length in life.lengths]
        await none_left(lambda: running(lengths))
    await none_left(lambda: leftovers(tmp_path))
