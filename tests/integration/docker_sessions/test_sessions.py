"""Whole sessions on Docker: the agent's computer from its first use to its end, and what may befall it in between."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from app.domain.prompts.executing import SANDBOX_REPLACED
from tests.fakes.scripted_openai import Asked, Reply
from tests.integration.docker_sessions.conftest import Yard, calling, complete, kill, plan, remove, shell
from tests.support.invariants import check_log, check_requests

PAGE = "<title>Hello</title><h1>A page</h1><a href='#there'>A link</a><input aria-label='Name'>"


def told(asked: Asked) -> str:
    """What the newest tool call was answered."""
    return next(message["content"] for message in reversed(asked.messages) if message["role"] == "tool")


async def test_a_task_uses_shell_files_and_browser_and_its_screenshots_can_be_fetched(yard: Yard) -> None:
    yard.model.reset(
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
    session = await yard.client.create_session()
    seen = await yard.client.send_and_read(session, "Do it")
    assert [item.event for item in seen][-2:] == ["message", "done"]
    called = [item.data for item in seen if item.event == "tool" and item.data["status"] == "called"]
    assert all(data["result"]["success"] for data in called), called
    assert called[0]["result"]["data"]["output"].split()[:2] == ["ubuntu", "/home/ubuntu"]
    assert called[2]["name"] == "browser"
    assert called[2]["result"]["data"]["title"] == "Hello"
    assert called[4]["content"]["console"] == "Ada"
    assert called[5]["result"]["data"]["title"] == "Hello"
    screenshot = await yard.client.http.get(called[2]["content"]["screenshot"])
    assert screenshot.headers["content-type"] == "image/jpeg"
    assert screenshot.content[:2] == b"\xff\xd8"
    assert 1_000 < len(screenshot.content) < 200_000
    check_log((await yard.client.get_session(session))["events"])
    check_requests(yard.model.asked)


async def test_a_question_that_needs_no_tools_starts_no_container(yard: Yard) -> None:
    yard.model.reset([Reply(calls=plan().calls[:0], text='{"title": "T", "message": "Paris.", "steps": []}')])
    seen = await yard.client.send_and_read(await yard.client.create_session(), "What is the capital of France?")
    assert [item.event for item in seen] == ["title", "message", "done"]
    assert await yard.containers() == []


@pytest.mark.parametrize("end", [kill, remove], ids=["docker kill", "docker rm -f"])
async def test_a_container_that_is_gone_in_the_middle_of_a_run_is_replaced_with_its_files_and_the_model_is_told(
    yard: Yard, end: Callable[[str], Awaitable[None]]
) -> None:
    yard.model.reset(
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
    session = await yard.client.create_session()
    chat = await yard.client.send_message(session, "Do it")
    await yard.called(chat, "shell_exec")
    await chat.wait_for("tool", args={"id": "main", "exec_dir": "~", "command": "sleep 300"})
    await end(yard.name(session))
    seen = await chat.read_all(60)
    called = [item.data for item in seen if item.event == "tool" and item.data["status"] == "called"]
    assert [data["result"]["success"] for data in called] == [True, False, True, True]
    assert called[2]["result"]["data"]["output"] == "kept\n"
    executing = [asked for asked in yard.model.asked if asked.kind == "executing"]
    assert "Failed: " in told(executing[2])
    assert told(executing[3]).startswith(SANDBOX_REPLACED)
    assert not told(executing[4]).startswith(SANDBOX_REPLACED)
    assert seen[-1].event == "done"


async def test_a_service_that_was_killed_finds_its_sandbox_again_with_what_runs_in_it(yard: Yard) -> None:
    yard.model.reset([plan(), shell("sleep 1000 & echo started"), complete(), Reply(text="Done.")])
    session = await yard.client.create_session()
    await yard.client.send_and_read(session, "Start something")
    before = await yard.container(session)
    await yard.start_again()
    yard.model.reset([plan(), shell("pgrep -c -x sleep"), complete(), Reply(text="Done.")])
    seen = await yard.client.send_and_read(session, "Is it still there?")
    output = next(item.data["result"]["data"]["output"] for item in seen if item.data.get("status") == "called")
    assert int(output) >= 1
    assert (await yard.container(session))["Id"] == before["Id"]
    assert not told(yard.model.asked[2]).startswith(SANDBOX_REPLACED)


async def test_stop_ends_a_browser_that_waits_for_a_page_and_leaves_it_usable(yard: Yard) -> None:
    hang = "new Promise(() => {})"
    yard.model.reset(
        [plan(), calling("browser_navigate", url="about:blank"), calling("browser_console_exec", javascript=hang)]
    )
    session = await yard.client.create_session()
    chat = await yard.client.send_message(session, "Wait")
    await chat.wait_for("tool", seconds=60, function="browser_console_exec", status="calling")
    began = time.monotonic()
    assert (await yard.client.stop_run(session)).status_code == 200
    assert time.monotonic() - began < 1
    assert (await chat.read_all())[-1].event == "done"
    yard.model.reset([plan(), calling("browser_view"), complete(), Reply(text="Done.")])
    seen = await yard.client.send_and_read(session, "Look")
    assert yard.called_in(seen, "browser_view")["result"]["success"]
    check_log((await yard.client.get_session(session))["events"])


@pytest.mark.parametrize("when", ["while it starts", "while it works"])
async def test_deleting_a_session_leaves_neither_container_nor_volume(yard: Yard, when: str) -> None:
    yard.model.reset([plan(), shell("echo started"), shell("sleep 300")])
    session = await yard.client.create_session()
    chat = await yard.client.send_message(session, "Work")
    await chat.wait_for("tool", seconds=60, status="calling")
    if when == "while it works":
        await yard.called(chat, "shell_exec")
        assert await yard.containers() == [yard.name(session)]
    answer = await yard.client.http.delete(f"/api/v1/sessions/{session}")
    assert answer.status_code == 200
    assert await yard.containers() == []
    assert await yard.volumes() == []
    assert (await yard.client.http.delete(f"/api/v1/sessions/{session}")).status_code == 404


async def test_the_file_view_starts_a_container_and_the_shell_view_does_not(yard: Yard) -> None:
    session = await yard.client.create_session()
    path = f"/api/v1/sessions/{session}"
    assert (await yard.client.http.post(f"{path}/shell", json={"session_id": "main"})).status_code == 404
    assert await yard.containers() == []
    assert (await yard.client.http.post(f"{path}/file", json={"file": "~/none.txt"})).status_code == 404
    assert await yard.containers() == [yard.name(session)]


async def test_twenty_sessions_at_once_all_get_a_computer_of_their_own(yard: Yard) -> None:
    def script(asked: Asked) -> Reply:
        if asked.kind == "planning":
            return plan()
        if asked.kind == "final":
            return Reply(text="Done.")
        return complete() if asked.messages[-1]["role"] == "tool" else shell("hostname -i; cat /etc/hostname")

    yard.model.reset(script)
    sessions = [await yard.client.create_session() for _ in range(20)]
    chats = [await yard.client.send_message(session, "Where are you?") for session in sessions]
    addresses = set()
    for chat in chats:
        seen = await chat.read_all(240)
        assert seen[-1].event == "done"
        called = yard.called_in(seen, "shell_exec")
        assert called["result"]["success"], called
        addresses.add(called["result"]["data"]["output"].split()[0])
    assert len(addresses) == 20
    gone = await asyncio.gather(*(yard.client.http.delete(f"/api/v1/sessions/{session}") for session in sessions))
    assert {answer.status_code for answer in gone} == {200}
    assert await yard.containers() == []
    assert await yard.volumes() == []


async def test_a_sandbox_knows_no_secret_of_the_service(yard: Yard) -> None:
    yard.model.reset(
        [
            plan(),
            shell("env; cat /proc/1/environ; cat /proc/*/environ 2>&1 | tr '\\0' '\\n'"),
            complete(),
            Reply(text="Done."),
        ]
    )
    session = await yard.client.create_session()
    seen = await yard.client.send_and_read(session, "Look around")
    output = yard.called_in(seen, "shell_exec")["result"]["data"]["output"]
    variables = dict(line.split("=", 1) for line in (await yard.container(session))["Config"]["Env"])
    assert "HOME=/home/ubuntu" in output
    assert "sk-" not in output
    assert variables["SANDBOX_TOKEN"] not in output
