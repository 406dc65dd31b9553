"""Measure an API process and a worker over a real MongoDB and a real Redis."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

from app.domain.models.event import MessageEvent
from app.domain.models.message import UserMessage
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event
from bench.client import Connection
from bench.harness import Bench, RunningProcess, first_line, median, model_settings, percentile, sandbox_settings
from bench.report import Row, within
from tests.support.redis_server import RedisServer
from tests.support.stores import Mongod

FIRST_EVENT_LIMIT = 25.0
"""Limit in milliseconds from POST chat to the first event."""

MAX_COMMIT_RATIO = 4.0
"""Maximum ratio of a commit to one insert with the same write concern."""

_TITLE = b"\nevent: title\n"


def run(bench: Bench) -> Iterable[Row]:
    """Measure commits in turn with the smallest write of the same safety, then chats through two processes."""
    mongod = Mongod(bench.path("mongod"))
    mongod.start()
    try:
        ours, bare = asyncio.run(_commits(mongod, bench.pick(400, 100)))
        yield Row(
            benchmark="processes",
            measurement="event, transcript and checkpoint in MongoDB, p50",
            unit="ms",
            result=median(ours),
            reference="one bare insert",
            reference_value=median(bare),
            at_most=MAX_COMMIT_RATIO,
            note=f"p10 {percentile(ours, 0.1):.1f}, p95 {percentile(ours, 0.95):.1f} ms; all majority and journaled",
        )
        yield from _chats(bench, mongod)
    finally:
        mongod.kill()


async def _commits(mongod: Mongod, times: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of our commits and of bare inserts of the same event."""
    ours: list[float] = []
    bare: list[float] = []
    event = MessageEvent(role="assistant", content="x" * 600)
    said = UserMessage(content="y" * 300)
    store = MongoStore(mongod.url, "ours", encode=encode_event, on_committed=lambda session_id, records: None)
    async with store, _inserting(mongod) as insert:
        await store.sessions.create("s", owner="", at=1)
        for number in range(times):
            change = Commit(
                timestamp=1,
                events=(event,),
                messages=(("executor", said),),
                checkpoint=Checkpoint(steps_started=number),
            )
            began = time.perf_counter()
            await store.event_log.commit("s", change)
            ours.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            await insert({"session": "s", "number": number, "data": encode_event(event, number, 1)})
            bare.append((time.perf_counter() - began) * 1e3)
    return ours, bare


@asynccontextmanager
async def _inserting(mongod: Mongod) -> AsyncGenerator[Any, None]:
    from motor.motor_asyncio import AsyncIOMotorClient
    from pymongo import WriteConcern

    client: Any = AsyncIOMotorClient(mongod.url)
    try:
        yield client["bare"].get_collection("events", write_concern=WriteConcern(w="majority", j=True)).insert_one
    finally:
        client.close()


def _chats(bench: Bench, mongod: Mongod) -> Iterator[Row]:
    times: list[float] = []
    with _cluster(bench, mongod) as (api, worker), api.connect() as connection:
        for _ in range(10):
            _chat(connection)
        before = api.cpu_seconds() + worker.cpu_seconds()
        count = bench.pick(150, 40)
        for _ in range(count):
            times.append(_chat(connection))
        cpu = (api.cpu_seconds() + worker.cpu_seconds() - before) / count * 1e3
        memory = f"api {api.rss_megabytes():.0f} MB, worker {worker.rss_megabytes():.0f} MB"
    note = (
        f"p10 {percentile(times, 0.1):.1f}, p95 {percentile(times, 0.95):.1f} ms; {cpu:.0f} ms of CPU a chat; {memory}"
    )
    yield within(
        "processes",
        "POST chat at the API to the worker's first event, p50",
        median(times),
        FIRST_EVENT_LIMIT,
        "ms",
        note,
    )


def _chat(connection: Connection) -> float:
    """Run a whole chat and return the milliseconds until its first event."""
    session = connection.new_session()
    began = time.perf_counter()
    connection.send("POST", f"/api/v1/sessions/{session}/chat", {"message": "Hello"})
    connection.read_until(_TITLE)
    taken = (time.perf_counter() - began) * 1e3
    connection.read_response()
    return taken


@contextmanager
def _cluster(bench: Bench, mongod: Mongod) -> Iterator[tuple[RunningProcess, RunningProcess]]:
    """Start an API process and a worker, and yield them once they are up."""
    with ExitStack() as stack:
        redis = stack.enter_context(_redis())
        model = stack.enter_context(bench.program("tests.fakes.scripted_openai", "--steps", "0"))
        sandbox = stack.enter_context(bench.sandbox_stand_in())
        settings = {
            "DATA_DIR": str(bench.path("data")),
            "PORT": "0",
            "MONGODB_URL": mongod.url,
            "MONGODB_DATABASE": f"chats-{secrets.token_hex(4)}",
            "REDIS_URL": redis.url,
            **model_settings(model),
            **sandbox_settings(sandbox),
        }
        process, log = stack.enter_context(bench.spawn(["-m", "app", "worker"], settings))
        first_line(process, log)
        worker = RunningProcess(process, "", log)
        process, log = stack.enter_context(bench.spawn(["-m", "app", "api"], settings))
        yield RunningProcess(process, first_line(process, log).split()[3], log), worker


@contextmanager
def _redis() -> Iterator[RedisServer]:
    with asyncio.Runner() as runner:
        server = RedisServer()
        runner.run(server.__aenter__())
        try:
            yield server
        finally:
            runner.run(server.__aexit__(None, None, None))
