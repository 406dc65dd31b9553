"""Kill: everything that was begun is gone, quickly."""

import asyncio
import os
import re
import time

import psutil
import pytest

from sandbox.tests.real import until

OURS = f".{os.getpid()}"
"""What the number of every sleeper ends with: those of another run of these tests on this machine are not counted."""

SPREAD = (
    "sleep 611 & setsid sleep 612 & (trap '' TERM INT HUP; sleep 613; sleep 614) & "
    "setsid sh -c 'sleep 615 & sleep 616' & sleep 617"
)


def ours(command: str) -> str:
    """The command with sleepers that can be told from all others."""
    return re.sub(r"\bsleep 61\d\b", rf"\g<0>{OURS}", command)


def sleepers() -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if command[:1] == ["sleep"] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(command[1])
    return [seconds.removesuffix(OURS) for seconds in found if seconds.endswith(OURS)]


def begun(*seconds: str) -> None:
    """Waits until these sleepers are there: what runs in the background may begin after its command's end, and what
    goes on after its answer."""
    until(lambda: sorted(sleepers()) == sorted(seconds))


async def test_kill_ends_the_whole_tree_and_leaves_bash_alive(quick):
    await quick.run("x=kept")
    await quick.run(ours(SPREAD))
    assert (await quick.call("/shell/wait", id="a", seconds=0.2))["status"] == "running"
    begun("611", "612", "613", "615", "616", "617")
    began = time.monotonic()
    data = await quick.call("/shell/kill", id="a")
    assert time.monotonic() - began < 2  # a fifth of that, but for a machine with other work
    assert data["status"] == "completed" and data["returncode"] != 0
    assert sleepers() == []
    assert (await quick.run("echo $x"))["output"].endswith("kept\n")


async def test_kill_does_not_let_the_rest_of_the_command_run(quick):
    await quick.run(ours("(trap '' INT TERM; sleep 611); touch ran; sleep 612; touch ran2"))
    await quick.call("/shell/kill", id="a")
    assert (await quick.run("ls"))["output"] == ""
    assert sleepers() == []


@pytest.mark.parametrize(
    "command", ["while :; do :; done", "while true; do sleep 0.01; done", "read x", "exec sleep 611"]
)
async def test_kill_ends_what_keeps_bash_itself_busy(quick, command):
    await quick.run(ours(command))
    assert (await quick.call("/shell/kill", id="a"))["status"] == "completed"
    assert (await quick.run("echo fine"))["output"].endswith("fine\n")
    assert sleepers() == []


async def test_kill_ends_a_stubborn_bash(quick):
    await quick.run("trap '' INT TERM HUP RTMAX-3; while :; do :; done")
    assert (await quick.call("/shell/kill", id="a"))["status"] == "completed"
    assert (await quick.run("echo fine"))["output"].endswith("fine\n")


async def test_kill_of_an_idle_shell_is_idempotent_and_ends_background_jobs(box):
    await box.run(ours("sleep 611 & sleep 612 & disown; (setsid nohup sleep 613 >/dev/null 2>&1 &)"))
    begun("611", "612", "613")
    for _ in range(2):
        assert (await box.call("/shell/kill", id="a"))["status"] == "completed"
        assert sleepers() == []
    assert (await box.run("echo fine"))["output"].endswith("fine\n")


async def test_kill_ends_a_stopped_job(quick):
    await quick.run(ours("sleep 611"))
    begun("611")
    await quick.call("/shell/write", id="a", input="\u001a", press_enter=False)
    assert (await quick.call("/shell/wait", id="a"))["returncode"] == 148
    await quick.call("/shell/kill", id="a")
    assert sleepers() == []


async def test_kill_ends_what_an_ended_shell_left(box):
    await box.run(ours("nohup sleep 611 >/dev/null 2>&1 & exit 0"))
    begun("611")
    await box.call("/shell/kill", id="a")
    assert sleepers() == []


async def test_kill_all_takes_the_shells_with_a_prefix(quick):
    for name in ("run1-a", "run1-b", "run2-a"):
        await quick.run(ours("sleep 611"), id=name)
    begun("611", "611", "611")
    assert sorted((await quick.call("/shell/kill_all", prefix="run1-"))["killed"]) == ["run1-a", "run1-b"]
    assert len(sleepers()) == 1
    assert (await quick.call("/shell/kill_all"))["killed"] == ["run1-a", "run1-b", "run2-a"]
    assert sleepers() == []


async def test_wait_returns_when_the_command_is_killed(quick):
    await quick.run(ours("sleep 611"))
    waiting = asyncio.create_task(quick.call("/shell/wait", id="a", seconds=60))
    await quick.call("/shell/kill", id="a")
    assert (await asyncio.wait_for(waiting, 30))["status"] == "completed"  # half of what it would have waited
