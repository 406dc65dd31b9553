"""Local sandboxes, with real processes: every way in which they end, and that nothing is left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.ledger import MARK_VARIABLE, Ledger
from app.infrastructure.sandbox.local import LocalSandboxes
from app.infrastructure.sandbox.workspace import remove_tree
from tests.integration.sandbox_processes import STRAYS, astray, commands, marked, run, services
from tests.support.eventually import eventually

EXEC_SECONDS = 0.3
BARE = f"1002.{os.getpid()}"
"""What a process sleeps that can be told by nothing else, and that no other process of this machine sleeps."""


def patience(promised: float, start: float) -> float:
    """What `promised` seconds are on a machine that may be busy: twice as long as a sandbox took to start, or so."""
    return max(promised, 2 * start)


async def until_it_expires(provider: LocalSandboxes) -> float:
    """Wait until the only sandbox was found to be idle; when that was, by the monotonic clock."""
    async with asyncio.timeout(30):
        while not await provider.expire():
            await asyncio.sleep(0.02)
    return time.monotonic()


async def test_destroy_ends_every_process_and_deletes_every_file(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, exec_seconds=EXEC_SECONDS) as provider:
        kept = await provider.acquire("other")
        started = time.monotonic()
        sandbox = await provider.acquire("s1")
        limit = patience(2, time.monotonic() - started)
        await kept.shell_exec("main", "", "sleep 1000")
        await run(sandbox, "mkdir -p a/b; touch a/b/c; chmod -R a-w a; ln -s / root")
        await sandbox.shell_exec("main", "", STRAYS)
        await sandbox.shell_exec("writer", "", "while true; do mkdir -p d; date > d/$RANDOM; done")
        await astray(tmp_path, "s1")
        await astray(tmp_path, "other", count=1)
        started = time.monotonic()
        await asyncio.gather(provider.destroy("s1"), provider.destroy("s1"))
        assert time.monotonic() - started < limit
        assert commands(marked(tmp_path, "s1")) == []
        assert sorted(each.name for each in (tmp_path / "sandboxes").iterdir()) == [".running", "other"]
        assert "sleep 1000" in commands(marked(tmp_path, "other"))
        await provider.destroy("s1")
        await provider.destroy("never existed")


async def test_destroy_ends_a_start_that_is_under_way(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        waiting = asyncio.create_task(provider.acquire("s1"))
        await eventually(lambda: marked(tmp_path, "s1"))
        await provider.destroy("s1")
        with pytest.raises(SandboxUnavailable, match="ended while it started"):
            await waiting
        assert commands(marked(tmp_path)) == []
        assert not (tmp_path / "sandboxes" / "s1").exists()


async def test_who_asks_while_a_sandbox_is_destroyed_gets_a_new_one(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        old = await provider.acquire("s1")
        await old.file_write("a.txt", "x", append=False, sudo=False)
        ending = asyncio.create_task(provider.destroy("s1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        new = await provider.acquire("s1")
        await ending
        assert new is not old and await provider.find("s1") is new
        with pytest.raises(SandboxFailure, match="no such file"):
            await new.file_read("a.txt", start=None, end=None, sudo=False)


async def test_destroy_goes_on_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        await provider.acquire("s1")
        caller = asyncio.create_task(provider.destroy("s1"))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await eventually(lambda: not (tmp_path / "sandboxes" / "s1").exists())


async def test_a_call_under_way_ends_when_its_sandbox_is_destroyed(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, exec_seconds=30) as provider:
        sandbox = await provider.acquire("s1")
        call = asyncio.create_task(sandbox.shell_exec("main", "", "sleep 1000"))
        await eventually(lambda: "sleep 1000" in commands(marked(tmp_path)))
        await provider.destroy("s1")
        async with asyncio.timeout(15):  # half of what the call would take
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
        # The sandbox may still have told how the command ended.
        assert isinstance(outcome, SandboxUnavailable | SandboxFailure) or outcome.status == "completed"


async def test_an_idle_sandbox_ends_and_comes_back_with_its_files(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, ttl_minutes=0.5 / 60, exec_seconds=EXEC_SECONDS) as provider:
        sandbox = await provider.acquire("s1")
        await sandbox.file_write("a.txt", "x", append=False, sudo=False)
        for use in (lambda: sandbox.shell_exec("main", "", "sleep 1000"), lambda: provider.acquire("s1")):
            await eventually(lambda: provider._slots["s1"].idle_seconds > 0.25)
            used = time.monotonic()
            await use()
        assert await until_it_expires(provider) - used >= 0.5
        assert await provider.find("s1") is None and commands(marked(tmp_path)) == []
        again = await provider.acquire("s1")
        assert (await again.file_read("a.txt", start=None, end=None, sudo=False)).content == "x"


async def test_a_sandbox_with_a_call_under_way_is_not_idle(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, ttl_minutes=0.3 / 60, exec_seconds=30) as provider:
        sandbox = await provider.acquire("s1")
        call = asyncio.create_task(sandbox.shell_exec("main", "", "sleep 1000"))
        await eventually(lambda: "sleep 1000" in commands(marked(tmp_path)))
        begun = time.monotonic()
        await eventually(lambda: time.monotonic() - begun > 0.4)
        assert await provider.expire() == 0
        await sandbox.shell_kill("main")
        assert (await call).status == "completed"
        await until_it_expires(provider)


async def test_a_sandbox_whose_browser_somebody_drives_is_not_idle(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, ttl_minutes=0.3 / 60, exec_seconds=30) as provider:
        endpoint = (await provider.acquire("s1")).browser
        # Browsers are driven over connections that the provider does not see.
        theirs = SandboxApiClient(endpoint.url.removesuffix("/cdp"), endpoint.token)
        body = {"id": "main", "exec_dir": "", "command": "sleep 1000"}
        call = asyncio.create_task(theirs.post("shell/exec", body, seconds=60))
        await eventually(lambda: "sleep 1000" in commands(marked(tmp_path)))
        await eventually(lambda: provider._slots["s1"].idle_seconds > 0.3)
        assert await provider.expire() == 0
        used = time.monotonic()
        await theirs.post("shell/kill", {"id": "main"}, seconds=10)
        await call
        assert await until_it_expires(provider) - used >= 0.3
        await theirs.aclose()


async def test_the_reaper_looks_by_itself_and_clears_up_after_a_crash(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, reap_seconds=0.02, exec_seconds=EXEC_SECONDS) as provider:
        sandbox = await provider.acquire("s1")
        await sandbox.shell_exec("main", "", STRAYS)
        await astray(tmp_path)
        os.kill(services(tmp_path)[0].pid, signal.SIGKILL)
        await eventually(lambda: marked(tmp_path) == [])


def bare() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", BARE]]


async def test_close_ends_all_in_about_two_seconds_even_those_that_hang(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, exec_seconds=EXEC_SECONDS) as provider:
        started = time.monotonic()
        sandboxes = await asyncio.gather(*(provider.acquire(f"s{n}") for n in range(4)))
        limit = patience(2.5, time.monotonic() - started)
        await asyncio.gather(*(each.shell_exec("main", "", STRAYS) for each in sandboxes))
        # One whose service is stopped and whose stray carries no mark.
        await sandboxes[0].shell_exec("bare", "", f"env -i setsid sleep {BARE}")
        await astray(tmp_path, count=16)
        await eventually(bare)
        os.kill(services(tmp_path, "s0")[0].pid, signal.SIGSTOP)
        provider.warm("s9")
        started = time.monotonic()
        await provider.close()
        took = time.monotonic() - started
    assert took < limit
    assert commands(marked(tmp_path)) == []
    assert not bare()
    assert (tmp_path / "sandboxes" / "s1" / "workspace").is_dir()
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await provider.acquire("s1")
    provider.warm("s1")
    await provider.close()


SERVICE = """
import asyncio, sys
from pathlib import Path
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.local import LocalSandboxes

async def main():
    async with LocalSandboxes(Path(sys.argv[1]), exec_seconds=0.3) as provider:
        sandbox = await provider.acquire("s1")
        await sandbox.shell_exec("main", "", sys.argv[2])
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_service_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    root, started = Path(__file__).parents[2], time.monotonic()
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, tmp_path, STRAYS], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    try:
        assert (await asyncio.to_thread(service.stdout.readline)) == "ready\n"
        limit = patience(2, time.monotonic() - started)
        await astray(tmp_path)
    finally:
        service.kill()
        service.wait()
        service.stdout.close()
    await eventually(lambda: marked(tmp_path) == [], seconds=limit)


async def test_a_start_ends_what_a_killed_service_left_and_nothing_of_others(tmp_path: Path) -> None:
    def stray(data_dir: Path) -> subprocess.Popen[bytes]:
        mark = Ledger(data_dir / "sandboxes").mark("s1")
        return subprocess.Popen(["sleep", "1003"], env={MARK_VARIABLE: mark, "PATH": os.environ["PATH"]})

    ours, others = stray(tmp_path / "ours"), stray(tmp_path / "others")
    (tmp_path / "ours" / "sandboxes" / ".trash-1" / "deep").mkdir(parents=True)
    try:
        async with LocalSandboxes(tmp_path / "ours"):
            assert ours.wait(1) == -signal.SIGKILL
            assert others.poll() is None
            assert not (tmp_path / "ours" / "sandboxes" / ".trash-1").exists()
    finally:
        for each in (ours, others):
            each.kill()
            each.wait()


async def test_a_second_service_on_the_same_folder_leaves_the_firsts_sandboxes_alone(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as first:
        sandbox = await first.acquire("s1")
        async with LocalSandboxes(tmp_path) as second:
            await second.acquire("s2")
        assert (await sandbox.shell_exec("main", "", "echo hi")).output == "hi\n"


async def test_sweep_deletes_the_workspaces_of_sessions_that_are_no_more(tmp_path: Path) -> None:
    for name in ("gone", "known"):
        (tmp_path / "sandboxes" / name / "workspace").mkdir(parents=True)
    async with LocalSandboxes(tmp_path) as provider:
        await provider.acquire("running")
        assert await provider.sweep({"known"}) == 1
        left = {each.name for each in (tmp_path / "sandboxes").iterdir()}
        assert left == {".running", "known", "running"}
        assert await provider.find("running") is not None


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody who may not do everything")
def test_read_only_folders_are_deleted_by_somebody_who_is_not_root() -> None:
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o777)
        script = (
            "import os, sys; from pathlib import Path; from app.infrastructure.sandbox.workspace import remove_tree\n"
            "os.setuid(65534); tree = Path(sys.argv[1]); (tree / 'a' / 'b').mkdir(parents=True)\n"
            "(tree / 'a' / 'b' / 'c').touch(); (tree / 'a' / 'b').chmod(0o500); (tree / 'a').chmod(0o000)\n"
            "tree.chmod(0o500); sys.exit(0 if remove_tree(tree) else 1)"
        )
        done = subprocess.run([sys.executable, "-c", script, Path(base) / "tree"], cwd=Path(__file__).parents[2])
        assert done.returncode == 0
        assert not (Path(base) / "tree").exists()


def test_a_symlink_is_deleted_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    assert remove_tree(tmp_path / "tree")
    assert (tmp_path / "outside" / "precious").exists()
