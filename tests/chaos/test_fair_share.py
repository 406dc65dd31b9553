"""Fair share between real processes: the many runs of one owner do not delay the first run of another."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.chaos.conftest import LONG, Settings
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SandboxProcess
from tests.support.eventually import eventually
from tests.support.marking import MarkingModel, run_endless_command, task
from tests.support.redis_server import RedisServer
from tests.support.service import ApiClient
from tests.support.stores import Mongod

SLOTS = 4
"""Number of runs that each worker carries at once."""

MANY = 100 if LONG else 24
"""Number of runs of the busy owner, none of which ends."""

FIRST_RESULT_SECONDS = 5.0
"""Limit for the first tool result of the other owner, on a machine that is not busy with other tests."""

PARTS = {"api": "api", "worker1": "worker", "worker2": "worker"}


@pytest.fixture
async def cluster(settings: Settings, mongod: Mongod, redis: RedisServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    settings |= {"RUNS_PER_PROCESS": str(SLOTS), "API_TOKENS": "busy:token-of-busy,other:token-of-other"}
    sandbox = SandboxProcess(tmp_path / "sandbox")
    async with Cluster(tmp_path / "cluster", PARTS, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster:
        yield cluster


async def test_first_run_of_an_owner_does_not_wait_for_endless_runs_of_another(
    cluster: Cluster, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    commands: list[str] = []
    script = MarkingModel(random.Random(0), tmp_path / "marks")
    script.step_scripts["endless"] = run_endless_command(commands)
    model.reset(script)
    async with _login(cluster, "busy") as busy, _login(cluster, "other") as other:
        for _ in range(MANY):
            await busy.send_message(await busy.create_session(), task("endless"))
        await eventually(lambda: len(commands) == 2 * SLOTS)
        started = time.monotonic()
        chat = await other.send_message(await other.create_session(), task("any"))
        await chat.wait_for("tool", status="called")
        seconds = time.monotonic() - started
        assert (await chat.read_all())[-1].event == "done"
        print(f"first tool result beside {MANY} runs of another owner: {seconds:.2f} s")
        assert seconds < cluster.scaled(FIRST_RESULT_SECONDS)
        assert len(commands) == 2 * SLOTS


@asynccontextmanager
async def _login(cluster: Cluster, owner: str) -> AsyncIterator[ApiClient]:
    client = ApiClient(cluster.members[0].service.url)
    client.http.headers["Authorization"] = f"Bearer token-of-{owner}"
    try:
        yield client
    finally:
        await client.close()
