"""A run that kills every process that carries it ends in an error."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.chaos.checks import as_events
from tests.chaos.conftest import LONG, TWO_OF_EACH, Settings
from tests.fakes.scripted_openai import Answer, Asked, Reply, ScriptedOpenAI
from tests.support.cluster import Cluster, Member, SandboxProcess
from tests.support.invariants import check_log
from tests.support.marking import MarkingModel, task
from tests.support.reader import ChatReader, RequestRefused, stored_frames
from tests.support.redis_server import RedisServer
from tests.support.stores import Mongod

MAX_DEATHS = 12
"""Maximum number of deaths before the service gives a run up."""


class HangingModelCall:
    """A step script that never completes its response, and reports that it was asked."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, _: Asked) -> Answer:
        self._loop.call_soon_threadsafe(self.asked.set)
        return Reply(text="It is all over.", hang_after=0)


async def _kill_until_run_ends(
    cluster: Cluster, call: HangingModelCall, victims: Callable[[], list[Member]], session_id: str
) -> int:
    """Kill and restart the victims at each model call of the run until the run is over; return the number of kills."""
    deaths = 0
    while True:
        asked = asyncio.create_task(call.asked.wait())
        ended = asyncio.create_task(_wait_for_end(cluster, session_id))
        async with asyncio.timeout(cluster.scaled(30)):
            await asyncio.wait([asked, ended], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            asked.cancel()
            await ended
            return deaths
        ended.cancel()
        call.asked.clear()
        for member in victims():
            await member.kill()
            await member.start()
        deaths += 1
        assert deaths <= MAX_DEATHS, "the run is not given up"


async def _wait_for_end(cluster: Cluster, session_id: str) -> None:
    while True:
        client = await cluster.pick_client(random.Random(0))
        with suppress(httpx.HTTPError, RequestRefused):
            history = await stored_frames(client, session_id)
            if history and history[-1].event in ("error", "done"):
                return
        await asyncio.sleep(0.05)


async def _check_run_is_given_up(
    cluster: Cluster, model: ScriptedOpenAI, victims: Callable[[], list[Member]], marks: Path
) -> None:
    script, call = MarkingModel(random.Random(0), marks), HangingModelCall()
    script.step_scripts["deadly"] = call
    model.reset(script)
    client = await cluster.pick_client(random.Random(0))
    session_id = await client.create_session()
    with suppress(httpx.HTTPError):
        await ChatReader(session_id).read(client.http, task("deadly"), max_bytes=1)
    deaths = await _kill_until_run_ends(cluster, call, victims, session_id)
    client = await cluster.pick_client(random.Random(0))
    history = await stored_frames(client, session_id)
    print(f"given up after {deaths} deaths: {history[-1].raw.decode()}")
    check_log(as_events(history))
    assert history[-1].event == "error"
    assert 2 <= deaths <= MAX_DEATHS
    # The session accepts the next message.
    reader = ChatReader(session_id, after=history[-1].number)
    await reader.read(client.http, task("harmless"))
    assert reader.frames[-1].event == "done"
    reader.check(await stored_frames(client, session_id))


async def test_run_that_kills_its_process_every_time_ends_in_error(
    model: ScriptedOpenAI, settings: Settings, tmp_path: Path
) -> None:
    async with Cluster(tmp_path / "cluster", {"one": ""}, settings) as cluster:
        await _check_run_is_given_up(cluster, model, lambda: cluster.running_members(""), tmp_path / "marks")


@pytest.mark.skipif(not LONG, reason="takes a minute of takeovers; set CHAOS_LONG=1")
async def test_run_that_kills_every_worker_ends_in_error(
    model: ScriptedOpenAI, settings: Settings, mongod: Mongod, redis: RedisServer, tmp_path: Path
) -> None:
    sandbox, folder = SandboxProcess(tmp_path / "sandbox"), tmp_path / "cluster"
    async with Cluster(folder, TWO_OF_EACH, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster:
        await _check_run_is_given_up(cluster, model, lambda: cluster.running_members("worker"), tmp_path / "marks")
