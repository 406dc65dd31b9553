"""A MongoDB replica set of three members, any of which fails while users work."""

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient

from app.infrastructure.persistence.mongo.client import ClientName
from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event
from tests.chaos.checks import as_events, check_sessions, check_stores_are_clean
from tests.chaos.fault_injector import longest_silence, run_users
from tests.chaos.user_session import UserSession
from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.cluster import Cluster
from tests.support.eventually import eventually
from tests.support.invariants import check_log
from tests.support.marking import MarkingModel, task
from tests.support.reader import stored_frames
from tests.support.replicas import ReplicaSet
from tests.support.service import ApiClient
from tests.support.sse import SseFrame, read_frames
from tests.support.stores import Mongod

ELECTION_SECONDS = 2.0
"""Election timeout of the replica set; MongoDB's default is 10."""

RECOVERY_SECONDS = 20.0
"""Limit from the election of a primary until every process is ready; the service promises one second."""

DETECTION_SECONDS = 6.0
"""Limit until every process knows that the majority is gone; the service promises three seconds."""

REFUSAL_SECONDS = 3.0
"""Limit for a request to be refused from then on; the service promises to refuse it at once."""

CLIENTS: tuple[ClientName, ...] = ("motor", "pymongo")

# All tests share one replica set and one cluster: they take longer to start than to fail over.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    replicas = ReplicaSet(tmp_path_factory.mktemp("replicas"), election_seconds=ELECTION_SECONDS)
    try:
        replicas.start()
        yield replicas
    finally:
        replicas.kill()


@pytest.fixture(scope="module")
def cluster(shared_cluster: Cluster) -> Cluster:
    return shared_cluster


class EventStream:
    """An `EventSource` of a browser: follows a session until it is closed."""

    def __init__(self, client: ApiClient, session_id: str) -> None:
        self.session_id = session_id
        self._frames: list[SseFrame] = []
        self._task = asyncio.create_task(self._read(client.http))

    async def _read(self, http: httpx.AsyncClient) -> None:
        async with http.stream("GET", f"/api/v1/sessions/{self.session_id}/events") as response:
            assert response.status_code == 200
            async for frame in read_frames(response):
                self._frames.append(frame)

    async def wait_for(self, history: Sequence[SseFrame]) -> None:
        """Wait until the stream has brought the whole history; fail if the stream ended."""

        def is_complete() -> bool:
            assert not self._task.done(), "the stream ended"
            return len(self._frames) >= len(history)

        await eventually(is_complete, seconds=20, interval=0.02)
        assert self._frames == history

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Failovers:
    """A `FaultSchedule`: the primary steps down, is killed, is suspended; then a secondary is killed."""

    seconds = 200.0

    def __init__(self, cluster: Cluster, replicas: ReplicaSet, model: ScriptedOpenAI) -> None:
        self._cluster = cluster
        self._replicas = replicas
        self._model = model

    async def run(self) -> None:
        for name, inject in (
            ("the primary steps down", self._step_down),
            ("the primary is killed", self._kill_primary),
            ("the primary is suspended", self._suspend_primary),
            ("a secondary is killed", self._kill_secondary),
        ):
            await asyncio.to_thread(self._replicas.wait_until_in_sync)
            await self._wait_for_work()
            started = time.monotonic()
            self._cluster.record(name)
            recover = await inject()
            elected = time.monotonic()
            self._cluster.record("there is a primary")
            await asyncio.gather(*(wait_until_ready_is(client, 200) for client in self._cluster.clients))
            ready = time.monotonic()
            self._cluster.record("all processes are ready", disrupts=True)
            await self._wait_for_work()
            print(
                f"{name}: a primary after {elected - started:.2f} s, all ready after {ready - started:.2f} s,"
                f" work went on after {time.monotonic() - started:.2f} s"
            )
            assert ready - elected < RECOVERY_SECONDS
            recover()
        await asyncio.to_thread(self._replicas.wait_until_in_sync)

    async def _step_down(self) -> Callable[[], None]:
        await self._replace_primary(await self._primary(), lambda _: asyncio.to_thread(self._replicas.step_down))
        return lambda: None

    async def _kill_primary(self) -> Callable[[], None]:
        primary = await self._primary()
        await self._replace_primary(primary, lambda member: asyncio.to_thread(member.kill))
        return primary.launch

    async def _suspend_primary(self) -> Callable[[], None]:
        primary = await self._primary()
        await self._replace_primary(primary, lambda member: asyncio.to_thread(member.pause))
        return primary.resume

    async def _kill_secondary(self) -> Callable[[], None]:
        secondary, _ = await asyncio.to_thread(self._replicas.secondaries)
        await asyncio.to_thread(secondary.kill)
        await self._primary()
        return secondary.launch

    async def _primary(self) -> Mongod:
        return await asyncio.to_thread(self._replicas.primary)

    async def _replace_primary(self, old: Mongod, inject: Callable[[Mongod], Awaitable[None]]) -> None:
        await inject(old)
        async with asyncio.timeout(60):
            while await self._primary() is old:
                await asyncio.sleep(0.05)

    async def _wait_for_work(self) -> None:
        """Wait until the model is asked to carry out a step, which happens in the middle of a run."""
        before = len(self._model.asked)
        await eventually(
            lambda: any(asked.kind == "executing" for asked in self._model.asked[before:]), seconds=60, interval=0.02
        )


async def test_any_member_failing_loses_no_event_and_repeats_no_command(
    cluster: Cluster, mongod: ReplicaSet, model: ScriptedOpenAI, seed: str, tmp_path: Path
) -> None:
    marks, numbers = tmp_path / "marks", itertools.count()
    script = MarkingModel(random.Random(seed), marks, slow=0.3)
    model.reset(script)
    stream = EventStream(cluster.clients[1], await cluster.clients[0].create_session())
    failovers = Failovers(cluster, mongod, model)
    try:
        sessions = await run_users(
            cluster, failovers, lambda: UserSession(cluster, script, f"{seed}-{next(numbers)}"), users=3
        )
        # A stream that was opened before all failovers still brings what happens now.
        await cluster.clients[0].send_and_read(stream.session_id, task("late"))
        await stream.wait_for(await stored_frames(cluster.clients[0], stream.session_id))
        await check_sessions(cluster, sessions, model.asked, marks)
        silence = longest_silence(cluster, sessions)
        print(f"{len(sessions)} sessions, longest silence {silence:.2f} s")
        assert silence < RECOVERY_SECONDS
        await check_stores_are_clean(cluster, [one.session_id for one in sessions if not one.deleted])
    except BaseException:
        print(cluster.report())
        raise
    finally:
        await stream.close()


async def test_requests_without_majority_return_503_and_succeed_once_it_is_back(
    cluster: Cluster, mongod: ReplicaSet, model: ScriptedOpenAI, tmp_path: Path
) -> None:
    model.reset(MarkingModel(random.Random(0), tmp_path / "marks", slow=1))
    await asyncio.to_thread(mongod.wait_until_in_sync)
    # With MongoDB's default the primary stays primary for a while: it can be read, but confirms no write.
    await asyncio.to_thread(mongod.set_election_timeout, 10)
    client, other = cluster.clients
    stream = EventStream(other, await client.create_session())
    chat = await client.send_message(stream.session_id, task("any"))
    await chat.wait_for("tool", status="calling")
    secondaries = await asyncio.to_thread(mongod.secondaries)
    for member in secondaries:
        member.pause()
    started, message, key = time.monotonic(), task("any", "Another thing"), {"Idempotency-Key": "the same"}
    try:
        first = await asyncio.gather(
            *(seconds_until_refused(one, "PUT", "/api/v1/sessions") for one in cluster.clients)
        )
        reasons = await asyncio.gather(*(wait_until_ready_is(one, 503) for one in cluster.clients))
        detection = time.monotonic() - started
        durations = await asyncio.gather(
            *(check_writes_are_refused(one, stream.session_id, message, key) for one in cluster.clients)
        )
    finally:
        for member in secondaries:
            member.resume()
    available = time.monotonic()
    print(f"without a majority: first refusals after {max(first):.2f} s, all know after {detection:.2f} s,")
    print(f"later refusals within {max(durations):.2f} s; {reasons[0]}")
    assert detection < DETECTION_SECONDS
    assert max(durations) < REFUSAL_SECONDS
    await asyncio.gather(*(wait_until_ready_is(one, 200) for one in cluster.clients))
    print(f"with a majority again: all ready after {time.monotonic() - available:.2f} s")
    assert (await chat.read_all())[-1].event == "done"
    print(f"the run ended in the same stream after {time.monotonic() - available:.2f} s")
    # The outcome of a refused message is unknown. Sent again with its key, it is stored once.
    again = await client.open_chat(stream.session_id, {"message": message}, key)
    assert (await again.read_all())[-1].event == "done"
    history = await stored_frames(other, stream.session_id)
    check_log(as_events(history))
    stored = [event["data"]["content"] for event in as_events(history) if event["data"].get("role") == "user"]
    assert stored == [task("any"), message]
    await stream.wait_for(history)
    await stream.close()
    await asyncio.to_thread(mongod.set_election_timeout, ELECTION_SECONDS)


async def check_writes_are_refused(client: ApiClient, session_id: str, message: str, key: Mapping[str, str]) -> float:
    """Check that every kind of write is refused; return the seconds that the slowest took."""
    path = f"/api/v1/sessions/{session_id}"
    return max(
        await seconds_until_refused(client, "PUT", "/api/v1/sessions"),
        await seconds_until_refused(client, "POST", f"{path}/chat", {"message": message}, key),
        await seconds_until_refused(client, "POST", f"{path}/stop"),
        await seconds_until_refused(client, "DELETE", path),
    )


async def seconds_until_refused(
    client: ApiClient, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> float:
    """Send a request, check that it returns 503 with a Retry-After header, and return the seconds it took."""
    started = time.monotonic()
    response = await client.http.request(method, path, json=body, headers=headers)
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) >= 1
    return time.monotonic() - started


async def wait_until_ready_is(client: ApiClient, status: int) -> str:
    """Wait until `/ready` returns `status`; return its message."""
    async with asyncio.timeout(60):
        while (response := await client.http.get("/ready")).status_code != status:
            await asyncio.sleep(0.05)
    return response.json()["msg"]


async def test_new_index_is_created_while_a_member_is_down(mongod: ReplicaSet) -> None:
    database = f"indexes_{secrets.token_hex(4)}"

    def store(name: ClientName) -> MongoStore:
        return MongoStore(mongod.url, database, encode=encode_event, on_committed=lambda *_: None, client=name)

    await asyncio.to_thread(mongod.wait_until_in_sync)
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
