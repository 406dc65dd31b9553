"""One process over SQLite that is killed and started again over the same folder. CHAOS_SEED repeats the faults."""

import itertools
import random
from pathlib import Path

import pytest

from tests.chaos.checks import check_sessions
from tests.chaos.conftest import KILLS, KILLS_PER_TEST, Settings
from tests.chaos.fault_injector import FaultInjector, longest_silence, progress_counters, run_users
from tests.chaos.user_session import UserSession
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SandboxProcess, processes_using, processes_with_argument, wait_until_gone
from tests.support.marking import MarkingModel

ROUNDS = max(1, KILLS // 2 // KILLS_PER_TEST)


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_process_killed_repeatedly_loses_no_event_and_repeats_no_command(
    model: ScriptedOpenAI, settings: Settings, seed: str, tmp_path: Path, number: int
) -> None:
    marks, round_seed = tmp_path / "marks", f"{seed}-one-{number}"
    script = MarkingModel(random.Random(round_seed), marks, slow=0.3)
    model.reset(script)
    # In half of the rounds the sandbox outlives the process, so that commands in flight go on.
    outlives = random.Random(round_seed).random() < 0.5
    sandbox = SandboxProcess(tmp_path / "sandbox") if outlives else None
    numbers = itertools.count()
    async with Cluster(tmp_path / "cluster", {"one": ""}, settings, sandbox=sandbox) as cluster:
        counters = progress_counters(model, marks)
        faults = FaultInjector(cluster, round_seed, kills=min(KILLS_PER_TEST, KILLS // 2), counters=counters)
        sessions = await run_users(
            cluster, faults, lambda: UserSession(cluster, script, f"{round_seed}-{next(numbers)}"), users=4
        )
        await check_sessions(cluster, sessions, model.asked, marks)
        silence = longest_silence(cluster, sessions)
        print(f"{len(sessions)} sessions, {faults.kills} kills, longest silence {silence:.2f} s")
        assert silence < cluster.scaled(20)
        await cluster.terminate()
        ended = [each for one in sessions if one.endless and one.cleanup_certain for each in one.endless_commands]
        await wait_until_gone(lambda: processes_with_argument(ended))
    await wait_until_gone(lambda: processes_using(tmp_path))
