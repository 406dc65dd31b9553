"""Whole sessions with Docker sandboxes, from the first use of a sandbox to its removal, and its failures in between."""

import asyncio
import time

import pytest

from app.domain.prompts.executing import SANDBOX_REPLACED
from tests.fakes.scripted_openai import Asked, Reply
from tests.integration.docker_sessions.conftest import (
    DockerService,
    calling,
    complete,
    completed_calls,
    plan,
    shell,
    wait_for_completed_call,
)
from tests.support.containers import docker
from tests.support.eventually import eventually
from tests.support.invariants import check_log, check_requests
from tests.support.sse import SseFrame, read_frames

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 10
"""Number of concurrent sessions, more than twice as many as may start a sandbox at the same time."""

PAGE = "<title>Hello</title><h1>A page</h1><a href='#there'>A link</a><input aria-label='Name'>"


def last_tool_result(asked: Asked) -> str:
    """Return the result of the newest tool call in a request to the model."""
    return next(message["content"] for message in reversed(asked.messages) if message["role"] == "tool")


async def test_run_with_shell_files_and_browser_succeeds_and_serves_screenshots(
    service: DockerService, session: str
) -> None:
    service.model.reset(
        [
            plan(),
            shell('id -un; pwd; echo "$PAGE" > page.html; touch made.txt; ls'),
            calling("file_write", file="page.html", content=PAGE),
            calling("browser_navigate", url="~/page.html"),
            calling("browser_input", index=2, text="Ada", press_enter=False),
            calling("browser_console_exec", javascript="document.querySelector('input').value"),
            calling("browser_restart", url="~/page.html"),
            complete(),
            Reply(text="Done."),
        ]
    )
    frames = await service.client.send_and_read(session, "Do it")
    assert [item.event for item in frames][-2:] == ["message", "done"]
    called = completed_calls(frames)
    assert all(data["result"]["success"] for data in called), called
    assert called[0]["result"]["data"]["output"].split()[:2] == ["ubuntu", "/home/ubuntu"]

    assert called[2]["name"] == "browser"

    assert called[2]["result"]["data"]["title"] == "Hello"
    assert called[4]["content"]["console"] == "Ada"
    assert called[5]["result"]["data"]["title"] == "Hello"
    screenshot = await service.client.http.get(called[2]["content"]["screenshot"])
    assert screenshot.headers["content-type"] == "image/jpeg"
    assert screenshot.content[:2] == b"\xff\xd8"
    assert 1_000 < len(screenshot.content) < 200_000
    check_log((await service.client.get_session(session))["events"])
    check_requests(service.model.asked)


async def test_run_without_tools_starts_no_container(service: DockerService, session: str) -> None:
    service.model.reset([Reply(calls=plan().calls[:0], text='{"title": "T", "message": "Paris.", "steps": []}')])
    frames = await service.client.send_and_read(session, "What is the capital of France?")
    assert [item.event for item in frames] == ["title", "message", "done"]
    assert not await service.has_container(session)


@pytest.mark.parametrize("command", [["kill"], ["rm", "--force"]], ids=["docker kill", "docker rm"])
async def test_lost_container_is_replaced_with_its_files_and_the_model_is_informed(
    service: DockerService, session: str, command: list[str]
) -> None:
    service.model.reset(
        [
            plan(),
            shell("echo kept > ~/kept.txt"),
            shell("sleep 300"),
            shell("cat ~/kept.txt"),
            shell("echo again"),
            complete(),
            Reply(text="Done."),
        ]
    )
    chat = await service.client.send_message(session, "Do it")
    await wait_for_completed_call(chat, "shell_exec")
    await chat.wait_for("tool", args={"id": "main", "exec_dir": "~", "command": "sleep 300"})
    await docker(*command, service.container_name(session))
    frames = await chat.read_all(60)
    called = completed_calls(frames)
    assert [data["result"]["success"] for data in called] == [True, False, True, True]

    assert called[2]["result"]["data"]["output"] == "kept\n"
    executing = [asked for asked in service.model.asked if asked.kind == "executing"]
    assert "Failed: " in last_tool_result(executing[2])
    assert last_tool_result(executing[3]).startswith(SANDBOX_REPLACED)
    assert not last_tool_result(executing[4]).startswith(SANDBOX_REPLACED)
    assert frames[-1].event == "done"


async def test_killed_service_finds_its_sandbox_with_running_processes(service: DockerService, session: str) -> None:
    service.model.reset([plan(), shell("sleep 1000 & echo started"), complete(), Reply(text="Done.")])
    await service.client.send_and_read(session, "Start something")
    before = await service.container(session)
    await service.kill_and_restart()
    service.model.reset([plan(), shell("pgrep -c -x sleep"), complete(), Reply(text="Done.")])
    frames = await service.client.send_and_read(session, "Is it still there?")
    assert int(completed_calls(frames)[0]["result"]["data"]["output"]) >= 1
    assert (await service.container(session))["Id"] == before["Id"]
    assert not last_tool_result(service.model.asked[2]).startswith(SANDBOX_REPLACED)


async def test_stop_interrupts_browser_call_and_browser_stays_usable(service: DockerService, session: str) -> None:
    hang = "new Promise(() => {})"
    service.model.reset(
        [plan(), calling("browser_navigate", url="about:blank"), calling("browser_console_exec", javascript=hang)]
    )
    chat = await service.client.send_message(session, "Wait")
    await chat.wait_for("tool", seconds=60, function="browser_console_exec", status="calling")
    started = time.monotonic()
    assert (await service.client.stop_run(session)).status_code == 200
    assert time.monotonic() - started < 1
    assert (await chat.read_all())[-1].event == "done"
    service.model.reset([plan(), calling("browser_view"), complete(), Reply(text="Done.")])
    frames = await service.client.send_and_read(session, "Look")
    assert completed_calls(frames, "browser_view")[0]["result"]["success"]
    check_log((await service.client.get_session(session))["events"])


@pytest.mark.parametrize("when", ["during start", "during work"])
async def test_delete_session_removes_container_and_volume(service: DockerService, session: str, when: str) -> None:
    service.model.reset([plan(), shell("echo started"), shell("sleep 300")])
    chat = await service.client.send_message(session, "Work")
    await chat.wait_for("tool", seconds=60, status="calling")
    if when == "during work":
        await wait_for_completed_call(chat, "shell_exec")
        assert await service.has_container(session)
    # Delete without the checks of `service.delete`, which take longer than a start.
    assert (await service.client.http.delete(f"/api/v1/sessions/{session}")).status_code == 200
    assert await service.delete(session) == 404


async def test_file_view_starts_container_and_shell_view_does_not(service: DockerService, session: str) -> None:
    path = f"/api/v1/sessions/{session}"
    assert (await service.client.http.post(f"{path}/shell", json={"session_id": "main"})).status_code == 404
    assert not await service.has_container(session)
    assert (await service.client.http.post(f"{path}/file", json={"file": "~/none.txt"})).status_code == 404
    assert await service.has_container(session)


async def test_concurrent_sessions_get_separate_sandboxes(service: DockerService) -> None:
    def script(asked: Asked) -> Reply:
        if asked.kind == "planning":
            return plan()
        if asked.kind == "final":
            return Reply(text="Done.")
        return complete() if asked.messages[-1]["role"] == "tool" else shell("hostname -i; cat /etc/hostname")

    service.model.reset(script)
    sessions = [await service.client.create_session() for _ in range(SESSIONS)]
    chats = [await service.client.send_message(session, "Where are you?") for session in sessions]
    addresses = set()
    for chat in chats:
        frames = await chat.read_all(240)
        assert frames[-1].event == "done"
        called = completed_calls(frames, "shell_exec")[0]
        assert called["result"]["success"], called
        addresses.add(called["result"]["data"]["output"].split()[0])
    assert len(addresses) == SESSIONS
    assert set(await asyncio.gather(*(service.delete(each) for each in sessions))) == {200}


async def test_sandbox_contains_no_secret_of_the_service(service: DockerService, session: str) -> None:
    service.model.reset(
        [
            plan(),
            shell("env; cat /proc/1/environ; cat /proc/*/environ 2>&1 | tr '\\0' '\\n'"),
            complete(),
            Reply(text="Done."),
        ]
    )
    frames = await service.client.send_and_read(session, "Look around")
    output = completed_calls(frames, "shell_exec")[0]["result"]["data"]["output"]
    variables = dict(line.split("=", 1) for line in (await service.container(session))["Config"]["Env"])
    assert "HOME=/home/ubuntu" in output
    assert "sk-" not in output
    assert variables["SANDBOX_TOKEN"] not in output


async def follow(service: DockerService, session: str, path: str, body: dict[str, str], seen: list[SseFrame]) -> None:
    """Add the frames of a live view to `seen` until cancelled."""
    address, headers = f"/api/v1/sessions/{session}/{path}", {"Accept": "text/event-stream"}
    async with service.client.http.stream("POST", address, json=body, headers=headers, timeout=None) as answer:
        async for frame in read_frames(answer):
            seen.append(frame)


async def test_shell_and_file_are_followed_live_and_shown_after_their_sandbox(
    service: DockerService, session: str
) -> None:
    command = "echo one; until [ -e go ]; do sleep 0.1; done; echo two"
    service.model.reset(
        [
            plan(),
            shell(command),
            calling("file_write", file="/home/ubuntu/a.txt", content="one\n"),
            calling("file_str_replace", file="/home/ubuntu/a.txt", old_str="one", new_str="two"),
            complete(),
            Reply(text="Done."),
        ]
    )
    shells: list[SseFrame] = []
    files: list[SseFrame] = []
    async with asyncio.TaskGroup() as tasks:
        views = [
            tasks.create_task(follow(service, session, "shell", {"session_id": "main"}, shells)),
            tasks.create_task(follow(service, session, "file", {"file": "/home/ubuntu/a.txt"}, files)),
        ]
        chat = await service.client.send_message(session, "Do it")
        await eventually(lambda: shells and shells[-1].data["console"][0]["output"] == "one\n", seconds=60)
        assert not completed_calls(chat.frames)
        await docker("exec", "--user", "ubuntu", service.container_name(session), "touch", "/home/ubuntu/go")
        called = completed_calls(await chat.read_all(60))
        await eventually(lambda: shells[-1].data["console"][0]["output"] == "one\ntwo\n")
        await eventually(lambda: files and files[-1].data["content"] == "two\n")
        await docker("rm", "--force", service.container_name(session))
        for view in views:
            view.cancel()
    rows = [{"ps1": "ubuntu@sandbox:~ $", "command": command, "output": "one\ntwo\n"}]
    assert shells[-1].data["console"] == called[0]["content"]["console"] == rows

    assert called[2]["content"] == {"content": "two\n", "file": "/home/ubuntu/a.txt"}
    address = f"/api/v1/sessions/{session}"
    answer = await service.client.http.post(f"{address}/shell", json={"session_id": "main"})
    assert answer.json()["data"]["console"] == rows
    assert not await service.has_container(session)
    answer = await service.client.http.post(f"{address}/file", json={"file": "a.txt"})
    assert answer.json()["data"] == {"content": "two\n", "file": "/home/ubuntu/a.txt"}
