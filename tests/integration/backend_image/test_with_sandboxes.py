"""The service's container with real sandboxes beside it, from `docker run` to `docker stop`."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.integration.backend_image.conftest import SOCKET, Backend, Yard
from tests.support.containers import docker, inspect, named
from tests.support.service import ApiClient

pytestmark = pytest.mark.timeout(180)

REACHES = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
except OSError as error:
    print(error)
else:
    print("reached")
"""


async def reaches(container: str, host: str, port: int) -> bool:
    """Whether a program in `container` can connect to a port."""
    return await docker("exec", container, "python3", "-c", REACHES, host, str(port)) == "reached"


async def sandbox_of(yard: Yard, session_id: str) -> dict[str, Any]:
    (name,) = [each for each in (await named(yard.prefix))["container"] if session_id in each]
    return await inspect(name)


def done(events: Iterable[Any]) -> list[Any]:
    """The results of the tools, in a run that came to its end."""
    seen = list(events)
    assert [item.event for item in seen][-2:] == ["message", "done"], [item.event for item in seen]
    called = [item.data for item in seen if item.event == "tool" and item.data["status"] == "called"]
    assert called
    assert all(item["result"]["success"] for item in called), called
    return called


def watching(backend: Backend, session_id: str) -> connect:
    return connect(f"ws://127.0.0.1:{backend.port}/api/v1/sessions/{session_id}/vnc", proxy=None)


async def test_it_works_as_its_users_run_it_and_leaves_nothing_behind(yard: Yard) -> None:
    backend = await yard.run(*SOCKET)
    client = await backend.ready()
    assert (await client.http.get("/ready")).json()["data"] == {"store": "ok", "sandbox": "ok"}

    # A task of several steps, in a sandbox that is a container beside this one.
    session_id = await client.create_session()
    done(await client.send_and_read(session_id, "What can this machine do?"))
    sandbox = await sandbox_of(yard, session_id)
    assert sandbox["Config"]["Labels"]["anker.session"] == session_id

    # Its desktop.
    async with watching(backend, session_id) as viewer:
        assert await viewer.recv() == b"RFB 003.008\n"

        # Its files outlive the service's container, and the sandbox is found again.
        await docker("exec", sandbox["Id"], "sh", "-c", "echo kept > ~/kept.txt")
        assert await backend.stop() < 5
        with pytest.raises(ConnectionClosed) as closed:
            await viewer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1001, 1012)
    assert (await backend.state())["ExitCode"] == 0
    await client.close()
    await docker("rm", backend.name)

    backend = await yard.run(*SOCKET)
    client = await backend.ready()
    answer = await client.http.post(f"/api/v1/sessions/{session_id}/file", json={"file": "kept.txt"})
    assert answer.json()["data"]["content"] == "kept\n"
    assert (await sandbox_of(yard, session_id))["Id"] == sandbox["Id"]

    assert (await client.http.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    assert await backend.stop() < 5
    log = await backend.logs()
    assert "Traceback" not in log
    await client.close()
    left = await named(yard.prefix)
    assert left["container"] == [backend.name]
    assert left["volume"] == [f"{yard.prefix}-data"]


async def test_a_sandbox_reaches_neither_the_service_nor_the_stores(yard: Yard) -> None:
    outside, stores = f"{yard.prefix}-outside", f"{yard.prefix}-stores"
    await docker("network", "create", outside)
    await docker("network", "create", "--internal", stores)
    listening = "import http.server; http.server.test(port={}, bind='0.0.0.0')"
    for name, port in (("mongodb", 27017), ("redis", 6379)):
        await docker(
            *("run", "--detach", "--name", f"{yard.prefix}-{name}", "--network", stores, "--network-alias", name),
            *("--entrypoint", "python3", yard.image, "-c", listening.format(port)),
        )
    backend = await yard.run(*SOCKET, "--network", outside)
    await docker("network", "connect", stores, backend.name)
    client = await backend.ready()
    session_id = await client.create_session()
    await _use(client, session_id)
    sandbox = (await sandbox_of(yard, session_id))["Id"]

    # From where they should be reached they are, so that what follows means something.
    network = f"{yard.prefix}-network"
    addresses = {name: await backend.address(name) for name in (outside, stores, network)}
    places = {}
    for name, port in (("mongodb", 27017), ("redis", 6379)):
        place = (await inspect(f"{yard.prefix}-{name}"))["NetworkSettings"]["Networks"][stores]["IPAddress"]
        places[name, place] = port
        assert await _eventually_reaches(backend.name, name, port)
    assert await reaches(backend.name, addresses[outside], 8000)

    gateways = [(await inspect(each))["IPAM"]["Config"][0]["Gateway"] for each in (network, outside, stores)]
    forbidden = [
        *((address, 8000) for address in addresses.values()),
        *((name, 8000) for name in (backend.name, "anker-backend", "host.docker.internal")),
        *((gateway, backend.port) for gateway in gateways),
        *((place, port) for (_, place), port in places.items()),
        *((name, port) for (name, _), port in places.items()),
    ]
    reached = await asyncio.gather(*(reaches(sandbox, host, port) for host, port in forbidden))
    assert not [place for place, open_ in zip(forbidden, reached, strict=True) if open_]
    await client.close()


async def test_after_a_kill_the_next_container_goes_on(yard: Yard) -> None:
    backend = await yard.run(*SOCKET)
    client = await backend.ready()
    session_id = await client.create_session()
    chat = await client.send_message(session_id, "What can this machine do?")
    await chat.wait_for("tool", status="called", seconds=60)
    await docker("kill", backend.name)
    await chat.read_all()
    await client.close()
    await docker("rm", backend.name)

    backend = await yard.run(*SOCKET)
    client = await backend.ready()
    rest = await (await client.open_chat(session_id, {"event_id": chat.frames[-1].id})).read_all(60)
    assert [item.event for item in rest][-2:] == ["message", "done"]
    await client.close()


async def _use(client: ApiClient, session_id: str) -> None:
    """Have the sandbox started."""
    answer = await client.http.post(f"/api/v1/sessions/{session_id}/file", json={"file": "/etc/hostname"})
    assert answer.status_code == 200, answer.text


async def _eventually_reaches(container: str, host: str, port: int) -> bool:
    """The other side may still be starting."""
    for _ in range(50):
        if await reaches(container, host, port):
            return True
        await asyncio.sleep(0.1)
    return False
