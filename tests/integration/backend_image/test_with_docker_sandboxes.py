"""The service's container with Docker sandboxes, from `docker run` to `docker stop`."""

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.integration.backend_image.conftest import SOCKET, BackendContainer, BackendRunner
from tests.support.containers import docker, inspect, named
from tests.support.eventually import eventually
from tests.support.service import ApiClient

pytestmark = pytest.mark.timeout(180)

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
except OSError as error:
    print(error)
else:
    print("reached")
"""


async def reaches(container: str, host: str, port: int) -> bool:
    """Return whether a program in `container` can connect to a port."""
    return await docker("exec", container, "python3", "-c", CONNECT, host, str(port)) == "reached"


async def inspect_sandbox(runner: BackendRunner, session_id: str) -> dict[str, Any]:
    (name,) = [each for each in (await named(runner.prefix))["container"] if session_id in each]
    return await inspect(name)


def check_run(frames: Sequence[Any]) -> None:
    """Check that a run came to its end and that all its tool calls succeeded."""
    assert [item.event for item in frames][-2:] == ["message", "done"], [item.event for item in frames]
    called = [item.data for item in frames if item.event == "tool" and item.data["status"] == "called"]
    assert called
    assert all(item["result"]["success"] for item in called), called


def connect_to_desktop(backend: BackendContainer, session_id: str) -> connect:
    return connect(f"ws://127.0.0.1:{backend.port}/api/v1/sessions/{session_id}/vnc", proxy=None)


async def test_session_survives_new_container_and_delete_leaves_nothing_behind(runner: BackendRunner) -> None:
    backend = await runner.run(*SOCKET)
    client = await backend.wait_until_ready()
    assert (await client.http.get("/ready")).json()["data"] == {"store": "ok", "sandbox": "ok"}

    # A run with several tool calls.
    session_id = await client.create_session()
    check_run(await client.send_and_read(session_id, "What can this machine do?"))
    sandbox = await inspect_sandbox(runner, session_id)
    assert sandbox["Config"]["Labels"]["anker.session"] == session_id

    # The desktop.
    async with connect_to_desktop(backend, session_id) as viewer:
        assert await viewer.recv() == b"RFB 003.008\n"

        # The sandbox and its files survive the service's container.
        await docker("exec", "--user", "ubuntu", sandbox["Id"], "sh", "-c", "echo kept > ~/kept.txt")
        assert await backend.stop() < 5
        with pytest.raises(ConnectionClosed) as closed:
            await viewer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1001, 1012)
    assert (await backend.state())["ExitCode"] == 0
    await client.close()
    await docker("rm", backend.name)

    backend = await runner.run(*SOCKET)
    client = await backend.wait_until_ready()
    response = await client.http.post(f"/api/v1/sessions/{session_id}/file", json={"file": "kept.txt"})
    assert response.json()["data"]["content"] == "kept\n"
    assert (await inspect_sandbox(runner, session_id))["Id"] == sandbox["Id"]

    assert (await client.http.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    assert await backend.stop() < 5
    log = await backend.logs()
    assert "Traceback" not in log
    await client.close()
    left = await named(runner.prefix)
    assert left["container"] == [backend.name]
    assert left["volume"] == [f"{runner.prefix}-data"]


async def test_sandbox_reaches_neither_service_nor_stores(runner: BackendRunner) -> None:
    outside, stores = f"{runner.prefix}-outside", f"{runner.prefix}-stores"
    await docker("network", "create", outside)
    await docker("network", "create", "--internal", stores)
    listening = "import http.server; http.server.test(port={}, bind='0.0.0.0')"
    for name, port in (("mongodb", 27017), ("redis", 6379)):
        await docker(
            *("run", "--detach", "--name", f"{runner.prefix}-{name}", "--network", stores, "--network-alias", name),
            *("--entrypoint", "python3", runner.image, "-c", listening.format(port)),
        )
    backend = await runner.run(*SOCKET, "--network", outside)
    await docker("network", "connect", stores, backend.name)
    client = await backend.wait_until_ready()
    session_id = await client.create_session()
    await _start_sandbox(client, session_id)
    sandbox = (await inspect_sandbox(runner, session_id))["Id"]

    # The service reaches the stores and itself: otherwise the rest of the test proves nothing.
    network = f"{runner.prefix}-network"
    addresses = {name: await backend.address(name) for name in (outside, stores, network)}
    store_addresses = {}
    for name, port in (("mongodb", 27017), ("redis", 6379)):
        address = (await inspect(f"{runner.prefix}-{name}"))["NetworkSettings"]["Networks"][stores]["IPAddress"]
        store_addresses[name, address] = port
        # A store may still be starting.
        await eventually(functools.partial(reaches, backend.name, name, port), interval=0.1)
    assert await reaches(backend.name, addresses[outside], 8000)

    gateways = [(await inspect(each))["IPAM"]["Config"][0]["Gateway"] for each in (network, outside, stores)]
    forbidden = [
        *((address, 8000) for address in addresses.values()),
        *((name, 8000) for name in (backend.name, "anker-backend", "host.docker.internal")),
        *((gateway, backend.port) for gateway in gateways),
        *((address, port) for (_, address), port in store_addresses.items()),
        *((name, port) for (name, _), port in store_addresses.items()),
    ]
    reached = await asyncio.gather(*(reaches(sandbox, host, port) for host, port in forbidden))
    assert not [target for target, is_reached in zip(forbidden, reached, strict=True) if is_reached]
    await client.close()


async def test_killed_container_is_replaced_and_run_resumes(runner: BackendRunner) -> None:
    backend = await runner.run(*SOCKET)
    client = await backend.wait_until_ready()
    session_id = await client.create_session()
    chat = await client.send_message(session_id, "What can this machine do?")
    await chat.wait_for("tool", status="called", seconds=60)
    await docker("kill", backend.name)
    await chat.read_all()
    await client.close()
    await docker("rm", backend.name)

    backend = await runner.run(*SOCKET)
    client = await backend.wait_until_ready()
    rest = await (await client.open_chat(session_id, {"event_id": chat.frames[-1].id})).read_all(60)
    assert [item.event for item in rest][-2:] == ["message", "done"]
    await client.close()


async def _start_sandbox(client: ApiClient, session_id: str) -> None:
    response = await client.http.post(f"/api/v1/sessions/{session_id}/file", json={"file": "/etc/hostname"})
    assert response.status_code == 200, response.text
