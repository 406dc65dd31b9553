"""MongoDB or Redis becomes unavailable during a run, and available again."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from app.infrastructure.queue.leases import LeaseTimes
from tests.chaos.checks import as_events
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.invariants import check_log
from tests.support.marking import CALLS, STEPS, MarkingModel, check_marks, read_marks, task
from tests.support.reader import ChatReader, RequestRefused, stored_frames
from tests.support.service import ApiClient
from tests.support.stores import Mongod

DETECTION_SECONDS = 2.0
"""Promised limit until the service knows that MongoDB is unavailable; requests sent before then wait for it."""

TOLERANCE_SECONDS = 3.0
"""Seconds that a request may take longer than promised on a machine that is busy with other tests."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(model: ScriptedOpenAI, shared_cluster: Cluster, tmp_path: Path) -> AsyncIterator[Cluster]:
    model.reset(MarkingModel(random.Random(0), tmp_path / "marks", slow=1))
    yield shared_cluster
    await shared_cluster.recover()


async def _start_run(client: ApiClient) -> ChatReader:
    """Start a run and read until its first tool call."""
    reader = ChatReader(await client.create_session())
    await reader.read(client.http, task("any"), max_bytes=1)
    async with asyncio.timeout(60):
        while not any(frame.event == "tool" for frame in reader.frames):
            await reader.read(client.http, max_bytes=1_500)
    return reader


async def _read_to_end(reader: ChatReader, client: ApiClient) -> None:
    async with asyncio.timeout(100):
        while not reader.at_end:
            with suppress(httpx.HTTPError, RequestRefused):
                await reader.read(client.http)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _unavailable(cluster: Cluster, mongod: Mongod, fault: str) -> AsyncIterator[None]:
    """Make MongoDB unavailable, and available again whatever happens: other tests use it too."""
    if fault == "killed":
        await asyncio.to_thread(mongod.kill)
    else:
        mongod.pause()
    cluster.record(f"mongod is {fault}")
    try:
        yield
    finally:
        if fault == "killed":
            await asyncio.to_thread(mongod.start)
        else:
            mongod.resume()
        cluster.record("mongod runs")


async def _seconds_until_refused(client: ApiClient, method: str, path: str, body: object = None) -> float:
    """Send a request, check that it returns a complete 503, and return the seconds it took."""
    started = time.monotonic()
    response = await client.http.request(method, path, json=body)
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["data"] is None
    return time.monotonic() - started


async def _seconds_until_ready_is(client: ApiClient, status: int) -> float:
    started = time.monotonic()

    async def has_status() -> bool:
        return (await client.http.get("/ready")).status_code == status

    await eventually(has_status, seconds=60, interval=0.05)
    return time.monotonic() - started


@pytest.mark.parametrize("fault", ["killed", "suspended"])
async def test_requests_without_mongod_return_503_at_once_and_run_resumes(
    cluster: Cluster, mongod: Mongod, fault: str
) -> None:
    client, other = cluster.clients
    reader = await _start_run(client)
    async with _unavailable(cluster, mongod, fault):
        session = f"/api/v1/sessions/{reader.session_id}"
        # These arrive before any process has noticed.
        ready, first_put, first_chat = await asyncio.gather(
            _seconds_until_ready_is(client, 503),
            _seconds_until_refused(client, "PUT", "/api/v1/sessions"),
            _seconds_until_refused(other, "POST", f"{session}/chat", {"message": "Hello?"}),
        )
        durations = {
            "get": await _seconds_until_refused(client, "GET", session),
            "put": await _seconds_until_refused(client, "PUT", "/api/v1/sessions"),
            "chat": await _seconds_until_refused(client, "POST", f"{session}/chat", {"message": "Hello?"}),
            "stop": await _seconds_until_refused(other, "POST", f"{session}/stop"),
            "delete": await _seconds_until_refused(other, "DELETE", session),
        }
    detection = {"ready": ready, "first put": first_put, "first chat": first_chat}
    durations_shown = {name: round(seconds, 2) for name, seconds in {**detection, **durations}.items()}
    print(f"mongod {fault}: refused after", durations_shown)
    assert max(detection.values()) < cluster.scaled(DETECTION_SECONDS + TOLERANCE_SECONDS)
    assert max(durations.values()) < cluster.scaled(1 + TOLERANCE_SECONDS)
    available = time.monotonic()
    await _read_to_end(reader, client)
    print(f"the run ended {time.monotonic() - available:.2f} s after mongod was available again")
    history = await stored_frames(other, reader.session_id)
    check_log(as_events(history))
    assert history[-1].event == "done"
    reader.check(history)
    await _seconds_until_ready_is(client, 200)


@pytest.mark.parametrize("fault", ["killed", "suspended"])
async def test_tool_call_that_ends_without_mongod_is_stored_and_run_stays_with_its_worker(
    cluster: Cluster, mongod: Mongod, tmp_path: Path, fault: str
) -> None:
    client, other = cluster.clients
    reader = await _start_run(client)
    async with _unavailable(cluster, mongod, fault):
        await eventually(lambda: read_marks(tmp_path / "marks"), seconds=60, interval=0.02)
        await asyncio.sleep(LeaseTimes().duration + 2)  # every lease expires
    await _read_to_end(reader, client)
    history = await stored_frames(other, reader.session_id)
    check_log(as_events(history))
    reader.check(history)
    assert not any(b"interrupted" in frame.raw for frame in history)
    marks = read_marks(tmp_path / "marks")
    assert len(marks) == STEPS * CALLS and set(marks.values()) == {1}
    assert not any("lease lost" in member.log for member in cluster.members)


async def test_worker_that_waits_for_mongod_ends_after_sigterm(
    cluster: Cluster, mongod: Mongod, tmp_path: Path
) -> None:
    client, other = cluster.clients
    reader = await _start_run(client)
    workers = cluster.running_members("worker")
    async with _unavailable(cluster, mongod, "killed"):
        await eventually(
            lambda: any("commit waits: the store is unavailable" in worker.log for worker in workers),
            seconds=60,
            interval=0.02,
        )
        durations = await asyncio.gather(*(worker.terminate() for worker in workers))
        print("workers ended after", [round(seconds, 2) for seconds in durations])
    await asyncio.gather(*(worker.start() for worker in workers))
    await _read_to_end(reader, client)
    history = await stored_frames(other, reader.session_id)
    check_log(as_events(history))
    reader.check(history)
    check_marks([history], read_marks(tmp_path / "marks"))


@pytest.mark.parametrize("fault", ["killed", "suspended"])
async def test_streams_without_redis_are_slower_and_complete(cluster: Cluster, fault: str) -> None:
    client, other = cluster.clients
    redis = cluster.redis
    assert redis is not None
    reader = await _start_run(client)
    if fault == "killed":
        await redis.kill()
    else:
        redis.freeze()
    cluster.record(f"Redis is {fault}")
    try:
        await _read_to_end(reader, client)
        reader.check(await stored_frames(other, reader.session_id))
        started = time.monotonic()
        second = ChatReader(await other.create_session())
        async with asyncio.timeout(60):
            await second.read(other.http, task("another"))
        assert second.frames[-1].event == "done"
        second.check(await stored_frames(client, second.session_id))
        print(f"Redis {fault}: a whole chat in one stream took {time.monotonic() - started:.2f} s")
        assert (await client.http.get("/health")).status_code == 200
        assert "redis" in (await client.http.get("/ready")).json()["msg"]
    finally:
        if fault == "killed":
            await redis.start()
        else:
            redis.thaw()
    await _seconds_until_ready_is(client, 200)
    started = time.monotonic()
    await second.read(other.http, task("another"))
    print(f"with Redis again: {time.monotonic() - started:.2f} s")
    second.check(await stored_frames(client, second.session_id))
