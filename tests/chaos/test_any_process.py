"""What one process is asked, another one does."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from tests.chaos.checks import check_at_rest, events_of
from tests.chaos.conftest import MANY, Settings
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, Member, SharedSandbox, none_left, running
from tests.support.crowd import Request
from tests.support.invariants import check_log
from tests.support.marking import MarkingModel, endless, task
from tests.support.reader import stored_frames
from tests.support.redis_server import RedisServer
from tests.support.service import ApiClient, ChatStream
from tests.support.stores import Mongod

STREAMS = 1_000
SESSIONS, KEYS = 100, 10
STOP_SECONDS = 3.0
"""Promised is one; a machine that is busy with other tests may take longer."""
TAKEOVER_SECONDS = 20.0
"""Promised are ten."""
HAND_OVER_SECONDS = 5.0


@pytest.fixture
def script(model: ScriptedOpenAI, tmp_path: Path) -> MarkingModel:
    script = MarkingModel(random.Random(0), tmp_path / "marks", slow=1)
    model.reset(script)
    return script


@pytest.fixture
async def cluster(
    script: MarkingModel,
    model: ScriptedOpenAI,
    settings: Settings,
    mongod: Mongod,
    redis: RedisServer,
    tmp_path: Path,
) -> AsyncIterator[Cluster]:
    sandbox, folder = SharedSandbox(tmp_path / "sandbox"), tmp_path / "cluster"
    async with Cluster(folder, MANY, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster:
        yield cluster
        await cluster.stop()


async def test_stop_reaches_a_run_in_another_process_in_a_second(cluster: Cluster, script: MarkingModel) -> None:
    first, second = cluster.apis
    took: list[float] = []
    lengths: list[str] = []
    script.answers["endless"] = endless(lengths)
    for _ in range(5):
        session = await first.create_session()
        chat = await first.send_message(session, task("endless"))
        await chat.wait_for("tool", status="calling")
        begun = time.monotonic()
        assert (await second.stop_run(session)).status_code == 200
        took.append(time.monotonic() - begun)
        assert (await second.get_session(session))["status"] == "completed"
        assert (await chat.read_all())[-1].event == "done"
        check_log((await first.get_session(session))["events"])
    print("stop took", [round(seconds, 3) for seconds in took])
    assert max(took) < cluster.patience(STOP_SECONDS)
    await none_left(lambda: running(lengths))


async def _working(cluster: Cluster, client: ApiClient, script: MarkingModel) -> tuple[str, ChatStream, Member]:
    """A session with a run under way, its stream, and the worker that carries it."""
    session = await client.create_session()
    chat = await client.send_message(session, task("any"))
    await chat.wait_for("tool", status="calling")
    for member in cluster.alive("worker"):
        if session in member.log:
            return session, chat, member
    raise AssertionError("nobody works on it")


@pytest.mark.parametrize("how", ["killed", "frozen", "told to end"])
async def test_another_worker_takes_over_in_the_same_stream(cluster: Cluster, script: MarkingModel, how: str) -> None:
    client = cluster.apis[0]
    session, chat, member = await _working(cluster, client, script)
    seen, begun = len(chat.frames), time.monotonic()
    if how == "killed":
        await member.kill()
    elif how == "frozen":
        member.freeze()
    else:
        await member.hand_over()
    await chat.wait_for("tool", status="called", tool_call_id=chat.frames[seen - 1].data["tool_call_id"])
    took = time.monotonic() - begun
    print(f"{member.name} was {how}; another went on after {took:.2f} s")
    assert took < cluster.patience(HAND_OVER_SECONDS if how == "told to end" else TAKEOVER_SECONDS)
    frames = await chat.read_all()
    assert frames[-1].event == "done"
    history = await stored_frames(cluster.apis[1], session)
    check_log(events_of(history))
    assert frames == history[1:]
    if how == "frozen":
        # It wakes up in the middle of what another has long ended, and finds that it may not write any more.
        member.thaw()
        async with asyncio.timeout(60):
            while "a run was lost to another worker" not in member.log:
                await asyncio.sleep(0.05)
        assert await stored_frames(client, session) == history


async def test_a_request_that_waits_when_its_process_is_told_to_end_is_sent_elsewhere(
    cluster: Cluster, script: MarkingModel
) -> None:
    api = cluster.members[0]
    assert api.client is not None
    session, chat, member = await _working(cluster, cluster.apis[1], script)
    member.freeze()  # so that nobody carries out the stop before its lease is over
    stopping = asyncio.create_task(api.client.stop_run(session))
    async with asyncio.timeout(60):
        while "stop" not in await _waiting(cluster, session):
            await asyncio.sleep(0.02)
    await api.hand_over(hang_up=False)
    answer = await stopping
    assert answer.status_code == 503, answer.text
    assert answer.json()["data"] is None and int(answer.headers["Retry-After"]) >= 1
    assert (await cluster.apis[0].stop_run(session)).status_code == 200
    assert (await chat.read_all())[-1].event == "done"
    member.thaw()


async def _waiting(cluster: Cluster, session: str) -> str:
    """What is asked of the session's run and not done yet."""
    assert cluster.mongod is not None
    async with AsyncMongoClient[dict[str, Any]](cluster.mongod.url) as client:
        found = await client[cluster.database]["sessions"].find_one({"_id": session})
    assert found is not None
    return "stop" if "stop_up_to" in found else ""


async def test_the_same_key_twice_at_the_same_instant_is_one_message(
    cluster: Cluster, script: MarkingModel, model: ScriptedOpenAI
) -> None:
    script.short.add("crowd")
    first, second = cluster.apis
    sessions = await asyncio.gather(*(first.create_session() for _ in range(SESSIONS)))
    urls = [str(client.http.base_url) for client in (first, second)]

    async def submit(session: str, number: int, url: str) -> tuple[int, int]:
        path, key = f"/api/v1/sessions/{session}/chat", {"Idempotency-Key": f"key-{number}"}
        body = {"message": task("crowd", f"words {number};")}
        refused = 0
        while True:
            request = await Request.send(url, "POST", path, body=body, headers=key)
            try:
                status = await request.status()
            finally:
                await request.hang_up()
            if status != 503:
                return status, refused
            # More than a busy machine's store bears at once: said again, with the same key.
            refused += 1
            await asyncio.sleep(1)

    begun = time.monotonic()
    answers = await asyncio.gather(
        *(submit(session, number, url) for session in sessions for number in range(KEYS) for url in urls)
    )
    print(f"{len(answers)} requests took {time.monotonic() - begun:.1f} s: (status, refusals)", Counter(answers))
    assert {status for status, _ in answers} == {200}
    async with asyncio.timeout(120):
        for session in sessions:
            while not await _completed(first, session):
                await asyncio.sleep(0.05)
    print(f"all rest after {time.monotonic() - begun:.1f} s")
    for session in sessions:
        events = (await second.get_session(session))["events"]
        check_log(events)
        said = [e["data"]["content"] for e in events if e["event"] == "message" and e["data"]["role"] == "user"]
        assert sorted(said) == sorted(task("crowd", f"words {number};") for number in range(KEYS))
    await check_at_rest(cluster, sessions)


async def _completed(client: ApiClient, session: str) -> bool:
    answer = await client.http.get(f"/api/v1/sessions/{session}")
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200 and answer.json()["data"]["status"] == "completed"


async def _crowd(client: ApiClient) -> list[Request]:
    """Streams that are open and live."""
    sessions = await asyncio.gather(*(client.create_session() for _ in range(20)))
    url = str(client.http.base_url)

    async def follow(session: str) -> Request:
        request = await Request.send(url, "GET", f"/api/v1/sessions/{session}/events")
        assert await request.status() == 200
        return request

    return list(await asyncio.gather(*(follow(sessions[n % 20]) for n in range(STREAMS))))


async def _end_with_a_crowd(member: Member, script: MarkingModel) -> None:
    assert member.client is not None
    streams = await _crowd(member.client)
    chat = await member.client.send_message(await member.client.create_session(), task("any"))
    await chat.wait_for("tool", status="calling")
    seconds = await member.hand_over()
    print(f"{member.name} ended in {seconds:.2f} s with {len(streams)} streams open")
    async with asyncio.timeout(60):
        await asyncio.gather(*(stream.rest() for stream in streams))
    await asyncio.gather(*(stream.hang_up() for stream in streams))


async def test_an_api_process_with_a_thousand_streams_ends_at_once(cluster: Cluster, script: MarkingModel) -> None:
    await _end_with_a_crowd(cluster.members[0], script)


async def test_the_one_process_with_a_thousand_streams_ends_at_once(
    script: MarkingModel, settings: Settings, tmp_path: Path
) -> None:
    async with Cluster(tmp_path / "one", {"one": ""}, settings) as cluster:
        await _end_with_a_crowd(cluster.members[0], script)
        assert "Traceback" not in cluster.members[0].log
