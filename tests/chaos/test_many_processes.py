"""API processes and workers over MongoDB and Redis, each of which dies, leaves and comes back in the middle of it all.
CHAOS_SEED plays a storm again."""

import itertools
import random
from pathlib import Path

import pytest

from tests.chaos.checks import check_at_rest, check_lives
from tests.chaos.conftest import KILLS, KILLS_A_STORM, Settings
from tests.chaos.lives import Life
from tests.chaos.storm import Storm, live_through, longest_silence, moments
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SharedSandbox, leftovers, none_left, running
from tests.support.marking import MarkingModel
from tests.support.redis_server import RedisServer
from tests.support.stores import Mongod

STORMS = max(1, KILLS // 2 // KILLS_A_STORM)
PARTS = {"api1": "api", "api2": "api", "worker1": "worker", "worker2": "worker", "worker3": "worker"}


@pytest.mark.parametrize("number", range(STORMS))
async def test_nothing_is_lost_and_nothing_done_twice_whichever_processes_die(
    model: ScriptedOpenAI,
    settings: Settings,
    mongod: Mongod,
    redis: RedisServer,
    seed: str,
    tmp_path: Path,
    number: int,
) -> None:
    marks, storm_seed = tmp_path / "marks", f"{seed}-many-{number}"
    script = MarkingModel(random.Random(storm_seed), marks, slow=0.3)
    model.reset(script)
    sandbox, numbers = SharedSandbox(tmp_path / "sandbox"), itertools.count()
    folder = tmp_path / "cluster"
    async with Cluster(folder, PARTS, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster:
        storm = Storm(cluster, storm_seed, kills=min(KILLS_A_STORM, KILLS // 2), counts=moments(model, marks))
        lives = await live_through(
            cluster, storm, lambda: Life(cluster, script, f"{storm_seed}-{next(numbers)}"), at_once=5
        )
        await check_lives(cluster, lives, model.asked, marks)
        silence = longest_silence(cluster, lives)
        print(f"{len(lives)} sessions, {storm.kills} deaths, longest silence {silence:.2f} s")
        assert silence < cluster.patience(20)
        await check_at_rest(cluster, [life.session for life in lives if not life.deleted])
        await cluster.stop()
        lengths = [length for life in lives if life.endless and life.certain for length in life.lengths]
        await none_left(lambda: running(lengths))
    await none_left(lambda: leftovers(tmp_path))
