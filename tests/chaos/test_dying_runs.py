"""A run that kills every process that takes it comes to an end all the same."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.chaos.checks import events_of
from tests.chaos.conftest import LONG, MANY, Settings
from tests.fakes.scripted_openai import Answer, Asked, Reply, ScriptedOpenAI
from tests.support.cluster import Cluster, Member, SharedSandbox
from tests.support.invariants import check_log
from tests.support.marking import MarkingModel, task
from tests.support.reader import ChatReader, RequestRefused, stored_frames
from tests.support.redis_server import RedisServer
from tests.support.stores import Mongod

MOST_DEATHS = 12


class Deadly:
    """Answers a step by having the process killed that asked."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __call__(self, _: Asked) -> Answer:
        self._loop.call_soon_threadsafe(self.asked.set)
        return Reply(text="It is all over.", hang_after=0)


async def _until_given_up(cluster: Cluster, deadly: Deadly, victims: Callable[[], list[Member]], session: str) -> int:
    """Kill whoever asks, start it again, until the run is over; how often that was."""
    deaths = 0
    while True:
        asked = asyncio.create_task(deadly.asked.wait())
        over = asyncio.create_task(_over(cluster, session))
        async with asyncio.timeout(cluster.patience(30)):
            await asyncio.wait([asked, over], return_when=asyncio.FIRST_COMPLETED)
        for task_ in (asked, over):
            task_.cancel()
        if over.done() and not over.cancelled() and over.result():
            return deaths
        deadly.asked.clear()
        for member in victims():
            await member.kill()
            await member.start()
        deaths += 1
        assert deaths <= MOST_DEATHS, "it goes on for ever"


async def _over(cluster: Cluster, session: str) -> bool:
    while True:
        client = await cluster.api(random.Random(0))
        with suppress(httpx.HTTPError, RequestRefused):
            if (history := await stored_frames(client, session)) and history[-1].event in ("error", "done"):
                return True
        await asyncio.sleep(0.05)


async def _give_up(cluster: Cluster, model: ScriptedOpenAI, victims: Callable[[], list[Member]], marks: Path) -> None:
    script, deadly = MarkingModel(random.Random(0), marks), Deadly()
    script.answers["deadly"] = deadly
    model.reset(script)
    client = await cluster.api(random.Random(0))
    session = await client.create_session()
    with suppress(httpx.HTTPError):
        await ChatReader(session).read(client.http, task("deadly"), max_bytes=1)
    deaths = await _until_given_up(cluster, deadly, victims, session)
    client = await cluster.api(random.Random(0))
    history = await stored_frames(client, session)
    print(f"given up after {deaths} deaths: {history[-1].raw.decode()}")
    check_log(events_of(history))
    assert history[-1].event == "error"
    assert 2 <= deaths <= MOST_DEATHS
    # The session is none the worse for it.
    reader = ChatReader(session, after=history[-1].number)
    await reader.read(client.http, task("harmless"))
    assert reader.frames[-1].event == "done"
    reader.check(await stored_frames(client, session))


async def test_a_run_that_kills_the_process_every_time_ends_in_an_error(
    model: ScriptedOpenAI, settings: Settings, tmp_path: Path
) -> None:
    async with Cluster(tmp_path / "cluster", {"one": ""}, settings) as cluster:
        await _give_up(cluster, model, lambda: cluster.alive(""), tmp_path / "marks")


@pytest.mark.skipif(not LONG, reason="takes over so often that it takes a minute: CHAOS_LONG=1")
async def test_a_run_that_kills_every_worker_ends_in_an_error(
    model: ScriptedOpenAI, settings: Settings, mongod: Mongod, redis: RedisServer, tmp_path: Path
) -> None:
    sandbox = SharedSandbox(tmp_path / "sandbox")
    async with Cluster(tmp_path / "cluster", MANY, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster:
        await _give_up(cluster, model, lambda: cluster.alive("worker"), tmp_path / "marks")
