"""Kill: every process of a shell ends, quickly."""

import asyncio
import os
import re
import time

import psutil
import pytest

from sandbox.shell import processes
from sandbox.shell.processes import shell_processes
from tests.support.eventually import wait_until

OURS = f".{os.getpid()}"
"""Suffix of the sleep times of this test run, which tells them apart from other runs on this machine."""

SPREAD = (
    "sleep 611 & setsid sleep 612 & (trap '' TERM INT HUP; sleep 613; sleep 614) & "
    "setsid sh -c 'sleep 615 & sleep 616' & sleep 617"
)


def ours(command: str) -> str:
    """Return the command with sleep times of this test run."""
    return re.sub(r"\bsleep 61\d\b", rf"\g<0>{OURS}", command)


def sleepers() -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if command[:1] == ["sleep"] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(command[1])
    return [seconds.removesuffix(OURS) for seconds in found if seconds.endswith(OURS)]


def begun(*seconds: str) -> None:
    """Wait until these sleepers run. Some start after their command has ended or after the response."""
    wait_until(lambda: sorted(sleepers()) == sorted(seconds))


async def test_kill_ends_process_tree_and_keeps_bash(quick):
    await quick.run("x=kept")
    await quick.run(ours(SPREAD))
    assert (await quick.call("/shell/wait", id="a", seconds=0.2))["status"] == "running"
    begun("611", "612", "613", "615", "616", "617")
    began = time.monotonic()
    data = await quick.call("/shell/kill", id="a")
    assert time.monotonic() - began < 2  # a fifth of this on an idle machine
    assert data["status"] == "completed" and data["returncode"] != 0
    assert sleepers() == []
    assert (await quick.run("echo $x"))["output"].endswith("kept\n")


LOOP = "for i in $(seq 300); do setsid sleep 611 & done"
"""Forks processes that leave the session of the shell, quickly but not without end."""


@pytest.mark.parametrize(
    "command", [LOOP, f"setsid sh -c '{LOOP}' & wait", f"setsid sh -c 'trap \"\" TERM INT HUP; {LOOP}' & wait"]
)
async def test_kill_ends_processes_that_are_forked_meanwhile(quick, monkeypatch, command):
    def search_slowly(*arguments):
        found = shell_processes(*arguments)
        time.sleep(0.15)  # as on a busy machine: the programs go on forking
        return found

    monkeypatch.setattr(processes, "shell_processes", search_slowly)
    for name in ("a", "b", "c"):
        await quick.run(ours(command), id=name)
        wait_until(lambda: len(sleepers()) > 8)
        await quick.call("/shell/kill", id=name)
        assert sleepers() == []


async def test_kill_drops_rest_of_command(quick):
    await quick.run(ours("(trap '' INT TERM; sleep 611); touch ran; sleep 612; touch ran2"))
    await quick.call("/shell/kill", id="a")
    assert (await quick.run("ls"))["output"] == ""
    assert sleepers() == []


@pytest.mark.parametrize(
    "command", ["while :; do :; done", "while true; do sleep 0.01; done", "read x", "exec sleep 611"]
)
async def test_kill_ends_busy_bash_builtin(quick, command):
    await quick.run(ours(command))
    assert (await quick.call("/shell/kill", id="a"))["status"] == "completed"
    assert (await quick.run("echo fine"))["output"].endswith("fine\n")
    assert sleepers() == []


async def test_kill_ends_bash_that_ignores_signals(quick):
    await quick.run("trap '' INT TERM HUP RTMAX-3; while :; do :; done")
    assert (await quick.call("/shell/kill", id="a"))["status"] == "completed"
    assert (await quick.run("echo fine"))["output"].endswith("fine\n")


@pytest.mark.parametrize(
    ("command", "returncode", "is_lost"),
    [
        ("sleep 611", 143, False),
        ("sleep 611 & wait", 130, False),
        ("coproc cat; wait", 130, False),
        ("read x", 130, False),
        ("while :; do :; done", 130, False),
        ("sh -c 'trap \"\" TERM; echo on; while :; do sleep 0.01; done'", 137, False),
        ("exec sleep 611", 143, True),
        ("exec bash --norc", 137, True),
        ("trap '' INT TERM HUP RTMAX-3; while :; do :; done", 137, True),
    ],
)
async def test_kill_gives_true_exit_code(quick, command, returncode, is_lost):
    await quick.run(f"echo ready; {ours(command)}")
    await quick.until("ready")
    data = await quick.call("/shell/kill", id="a")
    assert data["returncode"] == returncode
    assert ("variables, functions and jobs are gone" in data["note"]) is is_lost
    assert data["console"][0]["output"].startswith("ready\n")
    assert (await quick.run("echo $?"))["output"].endswith(f"{0 if is_lost else returncode}\n")


@pytest.mark.parametrize(("key", "returncode"), [("\u0003", 130), ("\u001c", 131), ("\u001a", 148)])
async def test_typed_signal_gives_its_exit_code(quick, key, returncode):
    await quick.run(ours("sleep 611"))
    begun("611")
    await quick.call("/shell/write", id="a", input=key, press_enter=False)
    data = await quick.call("/shell/wait", id="a", seconds=30)
    assert (data["returncode"], data["note"]) == (returncode, "")


async def test_kill_of_idle_shell_is_idempotent_and_ends_background_jobs(box):
    await box.run(ours("sleep 611 & sleep 612 & disown; (setsid nohup sleep 613 >/dev/null 2>&1 &)"))
    begun("611", "612", "613")
    for _ in range(2):
        assert (await box.call("/shell/kill", id="a"))["status"] == "completed"
        assert sleepers() == []
    assert (await box.run("echo fine"))["output"].endswith("fine\n")


async def test_kill_ends_stopped_job(quick):
    await quick.run(ours("sleep 611"))
    begun("611")
    await quick.call("/shell/write", id="a", input="\u001a", press_enter=False)
    assert (await quick.call("/shell/wait", id="a"))["returncode"] == 148
    await quick.call("/shell/kill", id="a")
    assert sleepers() == []


async def test_kill_ends_processes_of_ended_shell(box):
    await box.run(ours("nohup sleep 611 >/dev/null 2>&1 & exit 0"))
    begun("611")
    await box.call("/shell/kill", id="a")
    assert sleepers() == []


async def test_kill_all_kills_shells_with_prefix(quick):
    for name in ("run1-a", "run1-b", "run2-a"):
        await quick.run(ours("sleep 611"), id=name)
    begun("611", "611", "611")
    assert sorted((await quick.call("/shell/kill_all", prefix="run1-"))["killed"]) == ["run1-a", "run1-b"]
    assert len(sleepers()) == 1
    assert (await quick.call("/shell/kill_all"))["killed"] == ["run1-a", "run1-b", "run2-a"]
    assert sleepers() == []


async def test_wait_returns_when_command_is_killed(quick):
    await quick.run(ours("sleep 611"))
    waiting = asyncio.create_task(quick.call("/shell/wait", id="a", seconds=60))
    await quick.call("/shell/kill", id="a")
    assert (await asyncio.wait_for(waiting, 30))["status"] == "completed"  # half of the requested wait
