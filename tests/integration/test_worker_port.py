"""WORKER_PORT: a worker serves health checks and metrics."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.cluster import SandboxProcess
from tests.support.redis_server import RedisServer, require_redis
from tests.support.service import ApiClient, ServiceNotStarted, ServiceProcess
from tests.support.stores import Mongod, require_mongod


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    require_mongod()
    require_redis()
    mongod = Mongod(tmp_path / "mongod")
    await asyncio.to_thread(mongod.start)
    try:
        async with RedisServer() as redis, SandboxProcess(tmp_path / "sandbox") as sandbox:
            yield {"MONGODB_URL": mongod.url, "REDIS_URL": redis.url, **sandbox.settings}
    finally:
        mongod.kill()


def process(tmp_path: Path, part: str, stores: dict[str, str], **settings: str) -> ServiceProcess:
    (tmp_path / part).mkdir(exist_ok=True)
    return ServiceProcess(tmp_path / part / "data", part, **stores, **settings)


async def test_worker_port_serves_only_health_ready_and_metrics(tmp_path: Path, stores: dict[str, str]) -> None:
    api, worker = process(tmp_path, "api", stores), process(tmp_path, "worker", stores, WORKER_PORT="0")
    client = await api.start()
    try:
        await look_at(worker, client)
        assert await worker.stop() in (0, -signal.SIGTERM)
    finally:
        await client.close()
        await api.stop()
        await worker.stop()
    assert "Traceback" not in worker.log.read_text()


async def look_at(worker: ServiceProcess, client: ApiClient) -> None:
    line = await worker.launch()
    assert line.startswith("Anker works on runs; http://127.0.0.1:")
    async with httpx.AsyncClient(base_url=line.split()[4].removesuffix("/health,")) as http:
        assert (await http.get("/health")).json()["data"] == {"status": "ok"}
        assert {"store", "redis", "sandbox"} <= set((await http.get("/ready")).json()["data"])
        session_id = await client.create_session()
        await client.send_and_read(session_id, "Hello")
        numbers = (await http.get("/metrics")).text
        assert 'anker_events_total{type="done"} 1.0' in numbers and "anker_runs_active" in numbers
        for method, path in (("GET", "/api/v1/sessions"), ("PUT", "/api/v1/sessions"), ("POST", "/api/v1/tickets")):
            assert (await http.request(method, path)).status_code == 404


async def test_used_worker_port_names_the_setting(tmp_path: Path, stores: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceNotStarted, match=f"WORKER_PORT: cannot listen on 127.0.0.1, port {port}"):
            await process(tmp_path, "worker", stores, WORKER_PORT=str(port)).launch()
