"""Processes and threads that act as another user, and the rights that they have. They need root to try it."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandbox.identity import PROGRAM_CAPABILITIES, Identity

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")

NOBODY = "nobody"
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")

PROGRAM = """
import json, os, subprocess, threading
from sandbox.identity import Identity, become
become(Identity.of_user("daemon"), sudo=False)
agent = Identity.of_user("nobody")
def status(path="/proc/thread-self/status"):
    return dict(line.rstrip("\\n").split(":\\t", 1) for line in open(path))
found = {"program": status()}
with agent.acting():
    found["acting"] = status()
found["after"] = status()
command = agent.command(["cat", "/proc/self/status"], "/")
shown = subprocess.run(command, capture_output=True, text=True, check=True, **agent.popen_options("/")).stdout
found["child"] = dict(line.split(":\\t", 1) for line in shown.splitlines())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, str]]:
    """Return `/proc/<pid>/status` of a program that left root, of its thread as the agent, and of a child."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def agent() -> Identity:
    return Identity.of_user(NOBODY)


def ids(status: dict[str, str], name: str) -> list[int]:
    """Return the real, effective, saved and file system id."""
    return [int(part) for part in status[name].split()]


def test_program_that_left_root_keeps_named_capabilities_only(found):
    daemon, program = Identity.of_user("daemon"), found["program"]
    assert ids(program, "Uid") == [daemon.uid] * 4 and ids(program, "Gid") == [daemon.gid] * 4
    wanted = sum(1 << number for number in PROGRAM_CAPABILITIES)
    masks = [int(program[name], 16) for name in CAPABILITIES]
    assert masks == [0, wanted, wanted, 0] and program["NoNewPrivs"] == "1"


def test_acting_thread_has_ids_of_user_and_no_effective_capability(found, agent):
    daemon = Identity.of_user("daemon")
    assert ids(found["acting"], "Uid") == [daemon.uid, agent.uid, daemon.uid, agent.uid]
    assert ids(found["acting"], "Gid") == [daemon.gid, agent.gid, daemon.gid, agent.gid]
    assert {int(part) for part in found["acting"]["Groups"].split()} == set(agent.groups)
    assert int(found["acting"]["CapEff"], 16) == 0
    for name in ("Uid", "Gid", "Groups", *CAPABILITIES):
        assert found["after"][name] == found["program"][name], name


def test_child_has_ids_of_user_and_no_capability(found, agent):
    child = found["child"]
    assert ids(child, "Uid") == [agent.uid] * 4 and ids(child, "Gid") == [agent.gid] * 4
    assert {int(part) for part in child["Groups"].split()} == set(agent.groups)
    assert [int(child[name], 16) for name in CAPABILITIES] == [0] * 4


def test_acting_changes_one_thread_only(agent):
    other = []

    def look() -> None:
        started.wait()
        other.append(os.geteuid())
        done.set()

    started, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=look)
    thread.start()
    with agent.acting():
        started.set()
        done.wait()
        assert os.geteuid() == agent.uid
    thread.join()
    assert other == [0] and os.geteuid() == 0


def test_acting_ends_after_error_and_may_be_nested(agent):
    before = os.geteuid(), os.getegid(), os.getgroups()
    with pytest.raises(ZeroDivisionError), agent.acting(), agent.acting():
        assert os.geteuid() == agent.uid
        raise ZeroDivisionError
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before


async def test_run_opens_files_with_rights_of_user(agent, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    with pytest.raises(PermissionError):
        await agent.run(secret.read_text)
    assert await asyncio.to_thread(secret.read_text) == "x"


def test_command_starts_in_folder_that_only_user_may_enter(agent, tmp_path):
    folder = Path("/tmp") / f"anker-identity-{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        os.chown(folder, agent.uid, agent.gid)
        command = agent.command(["pwd"], str(folder))
        done = subprocess.run(command, capture_output=True, text=True, check=True, **agent.popen_options(str(folder)))
        assert done.stdout == f"{folder}\n"
    finally:
        folder.rmdir()


def test_own_user_needs_no_change(tmp_path):
    own = Identity.of_user("")
    assert not own.foreign and own.popen_options("/") == {"cwd": "/"} and own.command(["a"], "/") == ["a"]
    with own.acting():
        assert os.geteuid() == own.uid


def test_unknown_user_raises_lookup_error():
    with pytest.raises(LookupError):
        Identity.of_user("no-such-user")
