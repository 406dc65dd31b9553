"""Tickets and signed addresses of a service with several API processes on one MongoDB."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.support.cluster import SandboxProcess
from tests.support.redis_server import RedisServer, require_redis
from tests.support.service import ApiClient, ServiceProcess
from tests.support.stores import Mongod, require_mongod

PROCESSES = 3

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[ApiClient]]:
    require_mongod()
    require_redis()
    folder = tmp_path_factory.mktemp("apis")
    mongod = Mongod(folder / "mongod")
    await asyncio.to_thread(mongod.start)
    try:
        async with RedisServer() as redis, AsyncExitStack() as stack:
            sandbox = await stack.enter_async_context(SandboxProcess(folder / "sandbox"))
            stores = {"MONGODB_URL": mongod.url, "REDIS_URL": redis.url, "LOG_LEVEL": "DEBUG", **sandbox.settings}
            services: list[ServiceProcess] = []
            clients: list[ApiClient] = []
            for number in range(PROCESSES):
                own_folder = folder / f"api{number}"
                own_folder.mkdir()
                service = ServiceProcess(own_folder / "data", part="api", LIMIT_LOGIN_FAILURES_PER_MINUTE="0", **stores)
                services.append(service)
                stack.push_async_callback(service.stop)
                clients.append(await service.start())
                stack.push_async_callback(clients[-1].close)
            yield clients
    finally:
        mongod.kill()
    for service in services:
        log = service.log.read_text()
        assert "Traceback" not in log
        for secret in ("ticket=", "signature="):
            assert secret not in log.replace(f"{secret}***", "")


async def open_stream(client: ApiClient, session_id: str, ticket: str) -> int:
    """Open an event stream with a ticket and return the status of the response."""
    path = f"/api/v1/sessions/{session_id}/events"
    async with client.http.stream("GET", path, params={"ticket": ticket}) as response:
        return response.status_code


async def test_ticket_of_one_process_is_redeemed_once_by_any_process(apis: list[ApiClient]) -> None:
    session_id = await apis[0].create_session()
    for turn in range(2 * PROCESSES):
        issuer = apis[turn % PROCESSES]
        response = await issuer.http.post("/api/v1/tickets", json={"session_id": session_id})
        ticket = response.json()["data"]["ticket"]
        statuses = await asyncio.gather(*(open_stream(client, session_id, ticket) for client in apis for _ in range(4)))
        assert sorted(statuses) == [200] + [401] * (4 * PROCESSES - 1)
    response = await apis[1].http.post("/api/v1/tickets", json={"session_id": session_id})
    assert (await apis[2].http.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    assert await open_stream(apis[0], session_id, response.json()["data"]["ticket"]) == 401


async def close_code(client: ApiClient, address: str) -> int:
    """Open a desktop and return the code with which the service closes it."""
    url = f"ws{str(client.http.base_url).removeprefix('http').rstrip('/')}{address}"
    async with connect(url, subprotocols=[Subprotocol("binary")], proxy=None) as viewer:
        await viewer.wait_closed()
        assert viewer.close_code is not None
        return viewer.close_code


async def test_signed_address_of_one_process_is_accepted_by_every_process(apis: list[ApiClient]) -> None:
    session_id = await apis[0].create_session()
    response = await apis[0].http.post(f"/api/v1/sessions/{session_id}/vnc/signed-url")
    address = response.json()["data"]["signed_url"]
    for client in apis:
        # The sandbox of this test has no desktop, so that an accepted viewer is closed too, for that reason.
        assert await close_code(client, address) in (4502, 4503)
        assert await close_code(client, address[:-1] + ("0" if address[-1] != "0" else "1")) == 4401
    assert (await apis[1].http.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    assert await close_code(apis[2], address) == 4404
