"""The container by itself: who it is, what it holds, and that it starts and stops however it is run."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from tests.integration.backend_image.conftest import SOCKET, Backend, Yard
from tests.support.containers import docker, inspect

LOCAL = {"SANDBOX_PROVIDER": "local"}
MB = 1_000_000


async def test_the_image_holds_what_the_service_needs_and_nothing_to_build_with(image: str) -> None:
    found, base = await inspect(image), await inspect("debian:bookworm-slim")
    assert found["Size"] - base["Size"] < 320 * MB
    inside = """
        for tool in pip gcc make git npm curl docker; do ! command -v $tool || exit 1; done
        test -z "$(find / -xdev -name .env -o -xdev -path '/opt/anker/*' -name tests)"
        # Everything is compiled: the service's user could not write what Python compiles.
        test -z "$(find /opt/anker/lib -name '*.py' -path '*/app/*' | while read file; do
            compiled=$(dirname $file)/__pycache__/$(basename $file .py).cpython-311.pyc
            test -e $compiled || echo $file
        done)"
        # What drives the browsers can run.
        /opt/anker/lib/python3*/site-packages/playwright/driver/node --version
    """
    assert (await docker("run", "--rm", "--entrypoint", "sh", image, "-euc", inside)).startswith("v")


async def test_the_service_is_nobody_special_and_may_use_the_engines_socket(yard: Yard) -> None:
    backend = await yard.run(*SOCKET, settings={"SANDBOX_PROVIDER": "remote", "SANDBOX_ADDRESS": "http://127.0.0.1:1"})
    await (await backend.ready("/health")).close()
    status = await backend.status()
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    assert status["Groups"] == ""  # has no need of the socket with this provider
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    backend = await yard.run(*SOCKET, settings={"SANDBOX_PROVIDER": "docker"}, publish=False)
    assert (await _status(backend))["Groups"] == str(os.stat("/var/run/docker.sock").st_gid)


async def test_what_runs_as_the_services_user_cannot_use_the_engine(yard: Yard) -> None:
    """Its own local sandboxes would do so."""
    backend = await yard.run(*SOCKET, settings=LOCAL)
    client = await backend.ready()
    assert (await backend.status())["Groups"] == ""
    assert "Permission denied" in await docker(
        *("exec", "--user", "anker", backend.name, "python", "-c"),
        "import socket\ntry: socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')\n"
        "except OSError as error: print(error)",
    )
    await client.close()


async def test_without_an_engine_the_demo_works_inside_the_container(yard: Yard) -> None:
    backend = await yard.run()
    client = await backend.ready()
    seen = await client.send_and_read(await client.create_session(), "What can this machine do?")
    assert [item.event for item in seen][-2:] == ["message", "done"]
    called = [item.data for item in seen if item.event == "tool" and item.data["status"] == "called"]
    assert called
    assert all(item["result"]["success"] for item in called)
    await client.close()


async def test_it_says_when_it_is_healthy(yard: Yard) -> None:
    backend = await yard.run("--health-interval", "1s", settings=LOCAL)
    await (await backend.ready()).close()
    deadline = time.monotonic() + 20
    while (await backend.state())["Health"]["Status"] == "starting":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    state = await backend.state()
    assert state["Health"]["Status"] == "healthy", state["Health"]
    check = (await inspect(backend.name))["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    # The same check, where there is no service.
    code = await asyncio.create_subprocess_exec(
        *("docker", "run", "--rm", "--entrypoint", check[1], yard.image, *check[2:]), stderr=asyncio.subprocess.DEVNULL
    )
    assert await code.wait() != 0


async def test_it_stops_at_once_and_with_success(yard: Yard) -> None:
    backend = await yard.run(settings=LOCAL)
    client = await backend.ready()
    session_id = await client.create_session()
    watching = await client.http.send(client.http.build_request("POST", "/api/v1/sessions"), stream=True)
    assert await backend.stop() < 5
    assert (await backend.state())["ExitCode"] == 0
    assert "Traceback" not in await backend.logs()
    await watching.aclose()
    await client.close()

    # What it knew is in the volume.
    backend = await yard.run(settings=LOCAL)
    client = await backend.ready()
    assert (await client.get_session(session_id))["session_id"] == session_id
    await client.close()


async def test_it_can_be_stopped_while_it_starts(yard: Yard) -> None:
    for seconds in (0, 0.1, 0.3, 0.6):  # by the shell, by the imports, by what opens
        backend = await yard.run(settings=LOCAL)
        await asyncio.sleep(seconds)
        assert await backend.stop() < 5


async def test_it_runs_as_another_user(yard: Yard) -> None:
    backend = await yard.run("--user", "1234", settings=LOCAL)
    await (await backend.ready()).close()
    assert (await backend.status())["Uid"].split() == ["1234"] * 4


async def test_it_runs_with_next_to_no_privileges_and_on_a_root_that_is_read_only(yard: Yard) -> None:
    """As the compose file has it."""
    few = ("--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "SETGID", "--cap-add", "SETUID")
    backend = await yard.run(
        *few, *("--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp"), settings=LOCAL
    )
    client = await backend.ready()
    seen = await client.send_and_read(await client.create_session(), "What can this machine do?")
    assert seen[-1].event == "done"
    assert await backend.stop() < 5
    await client.close()


async def test_a_folder_of_the_host_becomes_its_own(yard: Yard, tmp_path: Path) -> None:
    folder = tmp_path / "not-there-yet"
    backend = await yard.run("--volume", f"{folder}:/data", settings=LOCAL)
    client = await backend.ready()
    await client.create_session()
    assert folder.stat().st_uid == 1000
    assert (folder / "anker.db").stat().st_uid == 1000
    await client.close()


async def test_on_the_hosts_network_it_stays_on_loopback(yard: Yard) -> None:
    backend = await yard.run("--network", "host", publish=False, settings={**LOCAL, "PORT": "0"})
    deadline = time.monotonic() + 20
    while "Anker listens on" not in await backend.logs() and (await backend.state())["Running"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert "Anker listens on http://127.0.0.1:" in await backend.logs()


@pytest.mark.parametrize("setting", [{"MONGODB_URL": "mongodb://x"}, {"PORT": "no"}])
async def test_a_setting_that_cannot_be_used_ends_it_with_one_line(yard: Yard, setting: dict[str, str]) -> None:
    backend = await yard.run(publish=False, settings=setting)
    assert await docker("wait", backend.name) == "1"
    lines = (await backend.logs()).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(next(iter(setting)))


async def _status(backend: Backend) -> dict[str, str]:
    """Of a service that need not answer."""
    deadline = time.monotonic() + 20
    while True:
        status = await backend.status()
        if status["Name"] == "tini":
            return status
        assert time.monotonic() < deadline, json.dumps(status)
        await asyncio.sleep(0.05)
