"""A MongoDB set of three members, any of which goes while sessions are worked on."""

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pymongo import AsyncMongoClient

from app.infrastructure.persistence.mongo.client import ClientName
from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event
from tests.chaos.checks import check_at_rest, check_lives, events_of
from tests.chaos.conftest import MANY, settings_for
from tests.chaos.lives import Life
from tests.chaos.storm import live_through, longest_silence
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster, SharedSandbox
from tests.support.invariants import check_log
from tests.support.marking import MarkingModel, task
from tests.support.reader import stored_frames
from tests.support.redis_server import RedisServer
from tests.support.replicas import ReplicaSet
from tests.support.service import ApiClient
from tests.support.sse import SseFrame
from tests.support.stores import Mongod

ELECTION_SECONDS = 2.0
"""Default of MongoDB: 10."""
BACK_SECONDS = 20.0
"""After there is a primary again, everybody has seen it by then; promised is a second."""
NOTICED_SECONDS = 6.0
"""Until it is known that a majority is gone; promised are three."""
AT_ONCE_SECONDS = 3.0
"""Within that a request is refused then; promised is at once."""

CLIENTS: tuple[ClientName, ...] = ("motor", "pymongo")

# One set and one cluster for all: they take longer to start than to fail over.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    replicas = ReplicaSet(tmp_path_factory.mktemp("replicas"), election_seconds=ELECTION_SECONDS)
    try:
        replicas.start()
        yield replicas
    finally:
        replicas.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    mongod: ReplicaSet, model: ScriptedOpenAI, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("failover")
    settings, sandbox = settings_for(model), SharedSandbox(folder / "sandbox")
    async with (
        RedisServer() as redis,
        Cluster(folder / "cluster", MANY, settings, sandbox=sandbox, mongod=mongod, redis=redis) as cluster,
    ):
        yield cluster
        await cluster.stop()


class Stream:
    """What a browser's `EventSource` opens: follows a session for as long as it lives."""

    def __init__(self, client: ApiClient, session: str) -> None:
        self.session = session
        self._seen: list[bytes] = []
        self._task = asyncio.create_task(self._read(client.http))

    async def _read(self, http: httpx.AsyncClient) -> None:
        async with http.stream("GET", f"/api/v1/sessions/{self.session}/events") as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    self._seen.append(line.removeprefix("data: ").encode())

    async def has(self, history: Sequence[SseFrame]) -> None:
        """Wait until it has brought all of it; raises when it ended."""
        async with asyncio.timeout(20):
            while len(self._seen) < len(history):
                assert not self._task.done(), "the stream ended"
                await asyncio.sleep(0.02)
        assert self._seen == [frame.raw for frame in history]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Failovers:
    """One after the other: the primary steps down, is killed, hangs; a secondary is killed."""

    seconds = 200.0

    def __init__(self, cluster: Cluster, replicas: ReplicaSet, model: ScriptedOpenAI) -> None:
        self._cluster = cluster
        self._replicas = replicas
        self._model = model

    async def rage(self) -> None:
        for name, act in (
            ("steps down", self._step_down),
            ("is killed", self._kill),
            ("hangs", self._freeze),
            ("has one secondary less", self._kill_secondary),
        ):
            await asyncio.to_thread(self._replicas.until_whole)
            await self._work_goes_on()
            begun = time.monotonic()
            self._cluster.note(f"the primary {name}")
            come_back = await act()
            elected = time.monotonic()
            self._cluster.note("there is a primary")
            await asyncio.gather(*(ready_turns(client, 200) for client in self._cluster.apis))
            ready = time.monotonic()
            self._cluster.note("all have seen it", sets_back=True)
            await self._work_goes_on()
            print(
                f"the primary {name}: one again after {elected - begun:.2f} s, seen by all after {ready - begun:.2f} s,"
                f" work went on after {time.monotonic() - begun:.2f} s"
            )
            assert ready - elected < BACK_SECONDS
            come_back()
        await asyncio.to_thread(self._replicas.until_whole)

    async def _step_down(self) -> Callable[[], None]:
        await self._until_other_than(await self._primary(), lambda _: asyncio.to_thread(self._replicas.step_down))
        return lambda: None

    async def _kill(self) -> Callable[[], None]:
        primary = await self._primary()
        await self._until_other_than(primary, lambda member: asyncio.to_thread(member.kill))
        return primary.launch

    async def _freeze(self) -> Callable[[], None]:
        primary = await self._primary()
        await self._until_other_than(primary, lambda member: asyncio.to_thread(member.pause))
        return primary.resume

    async def _kill_secondary(self) -> Callable[[], None]:
        one, _ = await asyncio.to_thread(self._replicas.secondaries)
        await asyncio.to_thread(one.kill)
        await self._primary()
        return one.launch

    async def _primary(self) -> Mongod:
        return await asyncio.to_thread(self._replicas.primary)

    async def _until_other_than(self, old: Mongod, act: Callable[[Mongod], Awaitable[None]]) -> None:
        await act(old)
        async with asyncio.timeout(60):
            while await self._primary() is old:
                await asyncio.sleep(0.05)

    async def _work_goes_on(self) -> None:
        """Until a model was asked to go on with a step, which is the work of a run that is well under way."""
        before = len(self._model.asked)
        async with asyncio.timeout(60):
            while not any(asked.kind == "executing" for asked in self._model.asked[before:]):
                await asyncio.sleep(0.02)


async def test_nothing_is_lost_and_nothing_done_twice_whichever_member_goes(
    cluster: Cluster, mongod: ReplicaSet, model: ScriptedOpenAI, seed: str, tmp_path: Path
) -> None:
    marks, numbers = tmp_path / "marks", itertools.count()
    script = MarkingModel(random.Random(seed), marks, slow=0.3)
    model.reset(script)
    stream = Stream(cluster.apis[1], await cluster.apis[0].create_session())
    failovers = Failovers(cluster, mongod, model)
    try:
        lives = await live_through(
            cluster, failovers, lambda: Life(cluster, script, f"{seed}-{next(numbers)}"), at_once=3
        )
        # A stream that was there before all of them is still there, and brings what happens now.
        await cluster.apis[0].send_and_read(stream.session, task("late"))
        await stream.has(await stored_frames(cluster.apis[0], stream.session))
        await check_lives(cluster, lives, model.asked, marks)
        silence = longest_silence(cluster, lives)
        print(f"{len(lives)} sessions, longest silence {silence:.2f} s")
        assert silence < BACK_SECONDS
        await check_at_rest(cluster, [life.session for life in lives if not life.deleted])
    except BaseException:
        print(cluster.report())
        raise
    finally:
        await stream.close()


async def test_without_a_majority_requests_are_refused_at_once_and_go_on_when_it_is_back(
    cluster: Cluster, mongod: ReplicaSet, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    model.reset(MarkingModel(random.Random(0), tmp_path / "marks", slow=1))
    await asyncio.to_thread(mongod.until_whole)
    # As long as it is by default: the primary stays in office, answers, reads, and cannot have anything confirmed.
    await asyncio.to_thread(mongod.be_patient, 10)
    client, other = cluster.apis
    stream = Stream(other, await client.create_session())
    chat = await client.send_message(stream.session, task("any"))
    await chat.wait_for("tool", status="calling")
    secondaries = await asyncio.to_thread(mongod.secondaries)
    for member in secondaries:
        member.pause()
    begun, words, key = time.monotonic(), task("any", "Another thing"), {"Idempotency-Key": "the same"}
    try:
        first = await asyncio.gather(*(refused(one, "PUT", "/api/v1/sessions") for one in cluster.apis))
        red = await asyncio.gather(*(ready_turns(one, 503) for one in cluster.apis))
        noticed = time.monotonic() - begun
        took = await asyncio.gather(*(refuses_everything(one, stream.session, words, key) for one in cluster.apis))
    finally:
        for member in secondaries:
            member.resume()
    back = time.monotonic()
    print(f"a majority is gone: the first are refused after {max(first):.2f} s, all know after {noticed:.2f} s,")
    print(f"then a request is refused after {max(took):.2f} s at most; {red[0]}")
    assert noticed < NOTICED_SECONDS
    assert max(took) < AT_ONCE_SECONDS
    await asyncio.gather(*(ready_turns(one, 200) for one in cluster.apis))
    print(f"it is back: all are ready after {time.monotonic() - back:.2f} s")
    assert (await chat.read_all())[-1].event == "done"
    print(f"the run, in the same stream, has ended after {time.monotonic() - back:.2f} s")
    # What was refused may be there all the same, nobody could know. Sent again with its key, it is there once.
    again = await client.open_chat(stream.session, {"message": words}, key)
    assert (await again.read_all())[-1].event == "done"
    history = await stored_frames(other, stream.session)
    check_log(events_of(history))
    said = [event["data"]["content"] for event in events_of(history) if event["data"].get("role") == "user"]
    assert said == [task("any"), words]
    await stream.has(history)
    await stream.close()
    await asyncio.to_thread(mongod.be_patient, ELECTION_SECONDS)


async def refuses_everything(client: ApiClient, session: str, words: str, key: Mapping[str, str]) -> float:
    """What the slowest of these took to be refused, in seconds."""
    path = f"/api/v1/sessions/{session}"
    return max(
        await refused(client, "PUT", "/api/v1/sessions"),
        await refused(client, "POST", f"{path}/chat", {"message": words}, key),
        await refused(client, "POST", f"{path}/stop"),
        await refused(client, "DELETE", path),
    )


async def refused(
    client: ApiClient, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> float:
    """The seconds until a request was refused with a 503 that says when to come again."""
    begun = time.monotonic()
    answer = await client.http.request(method, path, json=body, headers=headers)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    return time.monotonic() - begun


async def ready_turns(client: ApiClient, status: int) -> str:
    """Wait until `/ready` says so; answers its words."""
    async with asyncio.timeout(60):
        while (answer := await client.http.get("/ready")).status_code != status:
            await asyncio.sleep(0.05)
    return answer.json()["msg"]


async def test_an_index_that_is_new_is_made_while_a_member_is_away(mongod: ReplicaSet) -> None:
    database = f"indexes_{secrets.token_hex(4)}"

    def store(name: ClientName) -> MongoStore:
        return MongoStore(mongod.url, database, encode=encode_event, on_committed=lambda *_: None, client=name)

    await asyncio.to_thread(mongod.until_whole)
    async with store("motor") as before:
        await before.sessions.create("s", owner="me", at=1)
    member = (await asyncio.to_thread(mongod.secondaries))[0]
    await asyncio.to_thread(member.kill)
    try:
        async with AsyncMongoClient[dict[str, Any]](mongod.url) as client:
            for name in CLIENTS:
                await client[database]["sessions"].drop_index("held")
                async with store(name):
                    assert "held" in await client[database]["sessions"].index_information()
    finally:
        member.launch()
