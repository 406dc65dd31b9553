"""The service's container without Docker sandboxes: user, contents, start and stop."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.integration.backend_image.conftest import SOCKET, BackendContainer, BackendRunner
from tests.support.containers import docker, inspect
from tests.support.eventually import eventually

LOCAL = {"SANDBOX_PROVIDER": "local"}
MB = 1_000_000


async def test_image_is_small_compiled_and_has_no_build_tools(image: str) -> None:
    found, base = await inspect(image), await inspect("debian:bookworm-slim")
    assert found["Size"] - base["Size"] < 360 * MB
    inside = """
        for tool in pip gcc make git npm curl docker; do ! command -v $tool || exit 1; done
        test -z "$(find / -xdev -name .env -o -xdev -path '/opt/anker/*' -name tests)"
        # Everything is compiled, because the service's user cannot write a cache.
        test -z "$(find /opt/anker/lib -name '*.py' -path '*/app/*' | while read file; do
            compiled=$(dirname $file)/__pycache__/$(basename $file .py).cpython-311.pyc
            test -e $compiled || echo $file
        done)"
        # The Node of Playwright, which drives the browsers, runs.
        /opt/anker/lib/python3*/site-packages/playwright/driver/node --version
    """
    assert (await docker("run", "--rm", "--entrypoint", "sh", image, "-euc", inside)).startswith("v")


async def test_service_runs_unprivileged_with_the_engines_group_only_if_needed(runner: BackendRunner) -> None:
    backend = await runner.run(
        *SOCKET, settings={"SANDBOX_PROVIDER": "remote", "SANDBOX_ADDRESS": "http://127.0.0.1:1"}
    )
    await (await backend.wait_until_ready("/health")).close()
    status = await backend.first_process_status()
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    assert status["Groups"] == ""  # this provider does not need the socket
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    backend = await runner.run(*SOCKET, settings={"SANDBOX_PROVIDER": "docker"}, publish=False)
    assert (await _final_status(backend))["Groups"] == str(os.stat("/var/run/docker.sock").st_gid)


async def test_with_local_sandboxes_service_user_cannot_use_the_engine(runner: BackendRunner) -> None:
    # Its local sandboxes run as the same user.
    backend = await runner.run(*SOCKET, settings=LOCAL)
    client = await backend.wait_until_ready()
    assert (await backend.first_process_status())["Groups"] == ""
    assert "Permission denied" in await docker(
        *("exec", "--user", "anker", backend.name, "python", "-c"),
        "import socket\ntry: socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')\n"
        "except OSError as error: print(error)",
    )
    await client.close()


async def test_without_engine_demo_runs_with_local_sandboxes(runner: BackendRunner) -> None:
    backend = await runner.run()
    client = await backend.wait_until_ready()
    frames = await client.send_and_read(await client.create_session(), "What can this machine do?")
    assert [item.event for item in frames][-2:] == ["message", "done"]
    called = [item.data for item in frames if item.event == "tool" and item.data["status"] == "called"]
    assert called
    assert all(item["result"]["success"] for item in called)
    await client.close()


async def test_health_check_reports_healthy_and_fails_without_service(runner: BackendRunner) -> None:
    backend = await runner.run("--health-interval", "1s", settings=LOCAL)
    await (await backend.wait_until_ready()).close()
    await eventually(lambda: _has_health(backend), interval=0.1)
    state = await backend.state()
    assert state["Health"]["Status"] == "healthy", state["Health"]
    check = (await inspect(backend.name))["Config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    # The same check fails in a container without a service.
    code = await asyncio.create_subprocess_exec(
        *("docker", "run", "--rm", "--entrypoint", check[1], runner.image, *check[2:]),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await code.wait() != 0


async def test_stop_ends_with_status_0_and_data_survives(runner: BackendRunner) -> None:
    backend = await runner.run(settings=LOCAL)
    client = await backend.wait_until_ready()
    session_id = await client.create_session()
    watching = await client.http.send(client.http.build_request("POST", "/api/v1/sessions"), stream=True)
    assert await backend.stop() < 5
    assert (await backend.state())["ExitCode"] == 0
    assert "Traceback" not in await backend.logs()
    await watching.aclose()
    await client.close()

    # The data is in the volume.
    backend = await runner.run(settings=LOCAL)
    client = await backend.wait_until_ready()
    assert (await client.get_session(session_id))["session_id"] == session_id
    await client.close()


async def test_stop_during_start_ends_at_once(runner: BackendRunner) -> None:
    for seconds in (0, 0.1, 0.3, 0.6):  # during the entrypoint, the imports, the opening of the store
        backend = await runner.run(settings=LOCAL)
        await asyncio.sleep(seconds)
        assert await backend.stop() < 5


async def test_other_user_works(runner: BackendRunner) -> None:
    backend = await runner.run("--user", "1234", settings=LOCAL)
    await (await backend.wait_until_ready()).close()
    assert (await backend.first_process_status())["Uid"].split() == ["1234"] * 4


async def test_minimal_privileges_and_read_only_root_work(runner: BackendRunner) -> None:
    """The options are those of the compose file."""
    few = ("--cap-drop", "ALL", "--cap-add", "CHOWN", "--cap-add", "SETGID", "--cap-add", "SETUID")
    backend = await runner.run(
        *few, *("--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp"), settings=LOCAL
    )
    client = await backend.wait_until_ready()
    frames = await client.send_and_read(await client.create_session(), "What can this machine do?")
    assert frames[-1].event == "done"
    assert await backend.stop() < 5
    await client.close()


async def test_new_host_folder_becomes_owned_by_the_service_user(runner: BackendRunner, tmp_path: Path) -> None:
    folder = tmp_path / "not-there-yet"
    backend = await runner.run("--volume", f"{folder}:/data", settings=LOCAL)
    client = await backend.wait_until_ready()
    await client.create_session()
    assert folder.stat().st_uid == 1000
    assert (folder / "anker.db").stat().st_uid == 1000
    await client.close()


async def test_on_host_network_service_listens_on_loopback(runner: BackendRunner) -> None:
    backend = await runner.run("--network", "host", publish=False, settings={**LOCAL, "PORT": "0"})

    async def has_started_or_ended() -> bool:
        return "Anker listens on" in await backend.logs() or not (await backend.state())["Running"]

    await eventually(has_started_or_ended, interval=0.05)
    assert "Anker listens on http://127.0.0.1:" in await backend.logs()


async def test_on_host_network_other_machines_need_a_login(runner: BackendRunner) -> None:
    settings = {**LOCAL, "HOST": "0.0.0.0", "PORT": "0"}
    backend = await runner.run("--network", "host", publish=False, settings=settings)
    assert await docker("wait", backend.name) == "1"
    assert (await backend.logs()).startswith("HOST: others can connect to 0.0.0.0, and there is no login")


async def test_container_without_a_login_starts_with_one_warning(runner: BackendRunner) -> None:
    backend = await runner.run(settings=LOCAL)
    await (await backend.wait_until_ready()).close()
    assert (await backend.logs()).count("there is no login: whoever can connect") == 1


@pytest.mark.parametrize("setting", [{"MONGODB_URL": "mongodb://x"}, {"PORT": "no"}])
async def test_unusable_setting_ends_container_with_one_line(runner: BackendRunner, setting: dict[str, str]) -> None:
    backend = await runner.run(publish=False, settings=setting)
    assert await docker("wait", backend.name) == "1"
    lines = (await backend.logs()).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(next(iter(setting)))


async def _final_status(backend: BackendContainer) -> dict[str, str]:
    """Return the status of the first process once the entrypoint has changed its user."""

    async def final_status() -> dict[str, str] | None:
        status = await backend.first_process_status()
        return status if status["Name"] == "tini" else None

    return await eventually(final_status)


async def _has_health(backend: BackendContainer) -> bool:
    return (await backend.state())["Health"]["Status"] != "starting"
