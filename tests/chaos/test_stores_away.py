"""The stores go away under a run, and come back."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from app.infrastructure.queue.leases import LeaseTimes
from tests.chaos.checks import events_of
from tests.chaos.conftest import MANY, Settings
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SharedSandbox
from tests.support.invariants import check_log
from tests.support.marking import CALLS, STEPS, MarkingModel, check_marks, task, words_in
from tests.support.reader import ChatReader, RequestRefused, stored_frames
from tests.support.redis_server import RedisServer
from tests.support.service import ApiClient
from tests.support.stores import Mongod

NOTICED_SECONDS = 2.0
"""Until it is known that MongoDB is away; what was sent when nobody knew yet is refused then."""
PATIENCE = 3.0
"""How much longer than promised something may take on a machine that is busy with other tests."""


@pytest.fixture
async def cluster(
    model: ScriptedOpenAI, settings: Settings, mongod: Mongod, redis: RedisServer, tmp_path: Path
) -> AsyncIterator[Cluster]:
    model.reset(MarkingModel(random.Random(0), tmp_path / "marks", slow=1))
    sandbox = SharedSandbox(tmp_path / "sandbox")
    async with Cluster(tmp_path / "cluster", MANY, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster:
        yield cluster
        await cluster.stop()


async def _to_the_end(reader: ChatReader, client: ApiClient) -> None:
    async with asyncio.timeout(100):
        while not reader.at_end:
            with suppress(httpx.HTTPError, RequestRefused):
                await reader.read(client.http)
            await asyncio.sleep(0.05)


async def _begin(client: ApiClient) -> ChatReader:
    """A run in the middle of its work."""
    reader = ChatReader(await client.create_session())
    await reader.read(client.http, task("any"), max_bytes=1)
    async with asyncio.timeout(60):
        while not any(frame.event == "tool" for frame in reader.frames):
            await reader.read(client.http, max_bytes=1_500)
    return reader


@asynccontextmanager
async def _away(cluster: Cluster, mongod: Mongod, how: str) -> AsyncIterator[None]:
    """MongoDB is `killed` or `frozen`, and comes back whatever happens: others use it as well."""
    if how == "killed":
        await asyncio.to_thread(mongod.kill)
    else:
        mongod.pause()
    cluster.note(f"mongod is {how}")
    try:
        yield
    finally:
        if how == "killed":
            await asyncio.to_thread(mongod.start)
        else:
            mongod.resume()
        cluster.note("mongod is back")


async def _refused(client: ApiClient, method: str, path: str, body: object = None) -> float:
    """The seconds until a request was refused with a 503 that says when to come again."""
    begun = time.monotonic()
    answer = await client.http.request(method, path, json=body)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.json()["data"] is None
    return time.monotonic() - begun


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_mongod_requests_are_refused_at_once_and_runs_rest(
    cluster: Cluster, mongod: Mongod, how: str
) -> None:
    client, other = cluster.apis
    reader = await _begin(client)
    async with _away(cluster, mongod, how):
        session = f"/api/v1/sessions/{reader.session_id}"
        # Those that come at the very instant at which nobody knows of it yet.
        ready, put, post = await asyncio.gather(
            _ready_turns_red(client),
            _refused(client, "PUT", "/api/v1/sessions"),
            _refused(other, "POST", f"{session}/chat", {"message": "Hello?"}),
        )
        took = {
            "ready": ready,
            "first put": put,
            "first chat": post,
            "get": await _refused(client, "GET", session),
            "put": await _refused(client, "PUT", "/api/v1/sessions"),
            "chat": await _refused(client, "POST", f"{session}/chat", {"message": "Hello?"}),
            "stop": await _refused(other, "POST", f"{session}/stop"),
            "delete": await _refused(other, "DELETE", session),
        }
    print(f"mongod {how}: refused after", {name: round(seconds, 2) for name, seconds in took.items()})
    noticed = max(took.pop("ready"), took.pop("first put"), took.pop("first chat"))
    assert noticed < cluster.patience(NOTICED_SECONDS + PATIENCE)
    assert max(took.values()) < cluster.patience(1 + PATIENCE)
    back = time.monotonic()
    await _to_the_end(reader, client)
    print(f"the run went on, and ended {time.monotonic() - back:.2f} s after mongod was back")
    history = await stored_frames(other, reader.session_id)
    check_log(events_of(history))
    assert history[-1].event == "done"
    reader.check(history)
    async with asyncio.timeout(60):
        while (await client.http.get("/ready")).status_code != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_call_that_ends_while_mongod_is_away_is_known_and_its_run_stays_where_it_is(
    cluster: Cluster, mongod: Mongod, tmp_path: Path, how: str
) -> None:
    client, other = cluster.apis
    reader = await _begin(client)
    async with _away(cluster, mongod, how):
        async with asyncio.timeout(60):
            while not words_in(tmp_path / "marks"):
                await asyncio.sleep(0.02)
        await asyncio.sleep(LeaseTimes().duration + 2)  # every lease runs out
    await _to_the_end(reader, client)
    history = await stored_frames(other, reader.session_id)
    check_log(events_of(history))
    reader.check(history)
    assert not any(b"interrupted" in frame.raw for frame in history)
    marks = words_in(tmp_path / "marks")
    assert len(marks) == STEPS * CALLS and set(marks.values()) == {1}
    assert not any("lost to another worker" in member.log for member in cluster.members)


async def test_a_worker_that_waits_for_mongod_ends_when_it_is_told_to(
    cluster: Cluster, mongod: Mongod, tmp_path: Path
) -> None:
    client, other = cluster.apis
    reader = await _begin(client)
    workers = cluster.alive("worker")
    async with _away(cluster, mongod, "killed"):
        async with asyncio.timeout(60):
            while not any("what was done waits for it" in worker.log for worker in workers):
                await asyncio.sleep(0.02)
        took = await asyncio.gather(*(worker.hand_over() for worker in workers))
        print("workers ended after", [round(seconds, 2) for seconds in took])
    await asyncio.gather(*(worker.start() for worker in workers))
    await _to_the_end(reader, client)
    history = await stored_frames(other, reader.session_id)
    check_log(events_of(history))
    reader.check(history)
    check_marks([history], words_in(tmp_path / "marks"))


async def _ready_turns_red(client: ApiClient) -> float:
    begun = time.monotonic()
    while (await client.http.get("/ready")).status_code != 503:
        assert time.monotonic() - begun < 60
        await asyncio.sleep(0.05)
    return time.monotonic() - begun


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_streams_are_slower_and_lose_nothing(
    cluster: Cluster, redis: RedisServer, how: str
) -> None:
    client, other = cluster.apis
    reader = await _begin(client)
    if how == "killed":
        await redis.kill()
    else:
        redis.freeze()
    cluster.note(f"redis is {how}")
    try:
        await _to_the_end(reader, client)
        reader.check(await stored_frames(other, reader.session_id))
        begun = time.monotonic()
        anew = ChatReader(await other.create_session())
        async with asyncio.timeout(60):
            await anew.read(other.http, task("another"))
        assert anew.frames[-1].event == "done"
        anew.check(await stored_frames(client, anew.session_id))
        print(f"redis {how}: a whole chat in one stream took {time.monotonic() - begun:.2f} s")
        assert (await client.http.get("/health")).status_code == 200
        assert "redis" in (await client.http.get("/ready")).json()["msg"]
    finally:
        if how == "killed":
            await redis.start()
        else:
            redis.thaw()
    async with asyncio.timeout(60):
        while (await client.http.get("/ready")).status_code != 200:
            await asyncio.sleep(0.05)
    begun = time.monotonic()
    await anew.read(other.http, task("another"))
    print(f"and with it again {time.monotonic() - begun:.2f} s")
    anew.check(await stored_frames(client, anew.session_id))
