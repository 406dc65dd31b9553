"""Canaries in a service of two processes over MongoDB and Redis, whose passwords are secrets as well."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import bson
import httpx
import pymongo
import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Monitor

from tests.fakes.scripted_openai import ScriptedOpenAI
from tests.support.canaries import CanaryModel, Planted, check_seen, use_service
from tests.support.cluster import SandboxProcess
from tests.support.collector import Collector
from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer, require_redis
from tests.support.service import ServiceProcess
from tests.support.stores import Mongod, require_mongod

pytestmark = pytest.mark.timeout(180)

DATABASE = "canaries"
USER = "anker"


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted.new("api_key", "google_search_api_key", "token", "mongodb", "redis", "header")


@pytest.fixture(scope="module")
def mongod(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A server with one user, whose password is a canary."""
    require_mongod()
    folder = tmp_path_factory.mktemp("mongod")
    key = folder / "key"
    key.write_bytes(base64.b64encode(secrets.token_bytes(96)))
    key.chmod(0o600)
    server = Mongod(folder / "data", arguments=("--auth", "--keyFile", str(key)))
    server.start()
    try:
        with pymongo.MongoClient(f"mongodb://{server.address}/?directConnection=true") as client:
            client.admin.command("createUser", USER, pwd=planted.own["mongodb"], roles=["root"])
        yield server
    finally:
        server.kill()


class Recorder:
    """Records every command that a Redis executes: all messages, keys and values."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self.commands: list[str] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Record while the block runs."""
        async with self._client.monitor() as monitor:
            task = asyncio.create_task(self._read(monitor))
            try:
                yield
                await self._client.execute_command("PING", "the end")
                await eventually(lambda: task.done() or "the end" in self.commands[-1])
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def _read(self, monitor: Monitor) -> None:
        async for command in monitor.listen():
            self.commands.append(command["command"])


def stored_by_mongodb(url: str) -> bytes:
    """Return every document of the service."""
    with pymongo.MongoClient(url) as client:
        raw = bson.CodecOptions(document_class=bson.raw_bson.RawBSONDocument)
        database = client.get_database(DATABASE, raw)
        documents = [each.raw for name in database.list_collection_names() for each in database[name].find()]
    assert len(documents) > 50
    return b"\n".join(documents)


@asynccontextmanager
async def open_services(folder: Path, settings: dict[str, str]) -> AsyncIterator[tuple[str, str, list[ServiceProcess]]]:
    """Run an API process and a worker; yield their addresses and both."""
    async with AsyncExitStack() as stack:
        services = [ServiceProcess(folder / part / "data", part, **settings) for part in ("api", "worker")]
        for service in services:
            service.data_dir.parent.mkdir()
            stack.push_async_callback(service.stop)
        lines = await asyncio.gather(*(service.launch() for service in services))
        yield lines[0].split()[3], lines[1].split()[4].removesuffix("/health,"), services


async def test_canaries_are_not_in_stores_messages_traces_and_logs_of_two_processes(
    planted: Planted, mongod: Mongod, tmp_path: Path
) -> None:
    require_redis()
    own = {name: quote(value, safe="") for name, value in planted.own.items()}
    url = f"mongodb://{USER}:{own['mongodb']}@{mongod.address}/?replicaSet=rs0&authSource=admin"
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer("--requirepass", planted.own["redis"]))
        sandbox = await stack.enter_async_context(SandboxProcess(tmp_path / "sandbox"))
        planted.own["sandbox"] = sandbox.settings["SANDBOX_TOKEN"]
        collector = stack.enter_context(Collector())
        model = stack.enter_context(ScriptedOpenAI(CanaryModel(planted)))
        client = await stack.enter_async_context(
            Redis(port=redis.port, password=planted.own["redis"], socket_timeout=None)
        )
        recorder = Recorder(client)
        settings = {
            **sandbox.settings,
            "MONGODB_URL": url,
            "MONGODB_DATABASE": DATABASE,
            "REDIS_URL": f"redis://:{own['redis']}@127.0.0.1:{redis.port}/0",
            "API_KEY": planted.key,
            "API_BASE": model.url,
            "GOOGLE_SEARCH_API_KEY": planted.own["google_search_api_key"],
            "API_TOKENS": f"ann:{planted.own['token']}",
            "WORKER_PORT": "0",
            "LOG_LEVEL": "DEBUG",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {planted.own['header']}",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true",
        }
        async with recorder.run(), open_services(tmp_path, settings) as (api, worker, services):
            headers = {"Authorization": f"Bearer {planted.own['token']}"}
            async with httpx.AsyncClient(base_url=api, headers=headers, timeout=60) as http:
                out = await use_service(http, planted)
                out["metrics"] += (await http.get(f"{worker}/metrics")).content
        logs = [service.log.read_bytes() for service in services]
        out["log"] = b"\n".join([*logs, (tmp_path / "sandbox" / "log").read_bytes()])
        out["redis"] = "\n".join(recorder.commands).encode()
        out["traces"] = b"\n".join(collector.bodies)
        out["model"] = b"\n".join(asked.raw for asked in model.asked)
        out["store"] = await asyncio.to_thread(stored_by_mongodb, url)
    check_seen(out, planted)
    assert all(b"***" in out[place] for place in ("redis", "traces"))
    assert b"PUBLISH" in out["redis"].upper()
