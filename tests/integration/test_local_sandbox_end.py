"""Local sandboxes as real processes: every way in which they end leaves no process and no unwanted file behind."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.local.process import MARK_VARIABLE, ProcessMarks
from app.infrastructure.sandbox.local.provider import LocalSandboxes
from app.infrastructure.sandbox.local.session_folders import remove_tree
from tests.integration.sandbox_processes import STRAYS, commands, marked, run, sandbox_processes, strays_started
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]

EXEC_SECONDS = 0.3
"""SANDBOX_EXEC_SECONDS of the sandboxes here: most commands run on."""

UNMARKED = f"1002.{os.getpid()}"
"""The argument of a `sleep` without a mark; no other process of this machine has it."""


def scaled(promised: float, start: float) -> float:
    """Return the limit for what takes at most `promised` seconds on a free machine, by how long a start took here."""
    return max(promised, 2 * start)


async def reap_until_empty(provider: LocalSandboxes) -> float:
    """Reap until no sandbox is left; return the monotonic time."""

    async def is_empty() -> bool:
        await provider.reap()
        return not provider.sessions

    await eventually(is_empty, interval=0.02)
    return time.monotonic()


def local_idle_seconds(provider: LocalSandboxes) -> float:
    """Return the idle time of the session `s1` as far as this process used it."""
    running = provider.session("s1").running
    return running.idle_seconds if running else 0.0


async def test_destroy_ends_every_process_and_deletes_every_file(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, exec_seconds=EXEC_SECONDS) as provider:
        kept = await provider.acquire("other")
        started = time.monotonic()
        sandbox = await provider.acquire("s1")
        limit = scaled(2, time.monotonic() - started)
        await kept.shell_exec("main", "", "sleep 1000")
        await run(sandbox, "mkdir -p a/b; touch a/b/c; chmod -R a-w a; ln -s / root")
        await sandbox.shell_exec("main", "", STRAYS)
        await sandbox.shell_exec("writer", "", "while true; do mkdir -p d; date > d/$RANDOM; done")
        await strays_started(tmp_path, "s1")
        await strays_started(tmp_path, "other", count=1)
        started = time.monotonic()
        await asyncio.gather(provider.destroy("s1"), provider.destroy("s1"))
        assert time.monotonic() - started < limit
        assert commands(marked(tmp_path, "s1")) == []
        assert [each.name for each in (tmp_path / "sandboxes").iterdir()] == ["other"]
        assert "sleep 1000" in commands(marked(tmp_path, "other"))
        await provider.destroy("s1")
        await provider.destroy("never existed")


async def test_destroy_during_a_start_ends_the_start(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        waiting = asyncio.create_task(provider.acquire("s1"))
        await eventually(lambda: marked(tmp_path, "s1"))
        await provider.destroy("s1")
        with pytest.raises(SandboxUnavailable, match="ended while it started"):
            await waiting
        assert commands(marked(tmp_path)) == []
        assert not (tmp_path / "sandboxes" / "s1").exists()


async def test_acquire_during_destroy_returns_a_new_sandbox(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path) as provider:
        old = await provider.acquire("s1")
        await old.file_write("a.txt", "x", append=False, sudo=False)
        known = old.instance_id
        ending = asyncio.create_task(provider.destroy("s1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        new = await provider.acquire("s1")
        await ending
        found = await provider.find("s1")
        assert found is not None and found.instance_id == new.instance_id != known
        with pytest.raises(SandboxFailure, match="no such file"):
            await new.file_read("a.txt", start=None, end=None, sudo=False)


async def test_call_in_progress_ends_when_its_sandbox_is_destroyed(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, exec_seconds=30) as provider:
        sandbox = await provider.acquire("s1")
        call = asyncio.create_task(sandbox.shell_exec("main", "", "sleep 1000"))
        await eventually(lambda: "sleep 1000" in commands(marked(tmp_path)))
        await provider.destroy("s1")
        async with asyncio.timeout(15):  # half of the 30 s that the call would take
            (outcome,) = await asyncio.gather(call, return_exceptions=True)
        # The sandbox may still have reported the end of the command.
        assert isinstance(outcome, SandboxUnavailable | SandboxFailure) or outcome.status == "completed"


async def test_idle_sandbox_is_stopped_and_its_files_stay(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, ttl_minutes=0.5 / 60, exec_seconds=EXEC_SECONDS) as provider:
        sandbox = await provider.acquire("s1")
        await sandbox.file_write("a.txt", "x", append=False, sudo=False)
        for use in (lambda: sandbox.shell_exec("main", "", "sleep 1000"), lambda: provider.acquire("s1")):
            await eventually(lambda: local_idle_seconds(provider) > 0.25)
            used = time.monotonic()
            await use()
        assert await reap_until_empty(provider) - used >= 0.5
        assert await provider.find("s1") is None and commands(marked(tmp_path)) == []
        again = await provider.acquire("s1")
        assert (await again.file_read("a.txt", start=None, end=None, sudo=False)).content == "x"


async def test_sandbox_with_a_call_in_progress_is_not_idle(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, ttl_minutes=0.3 / 60, exec_seconds=30) as provider:
        sandbox = await provider.acquire("s1")
        call = asyncio.create_task(sandbox.shell_exec("main", "", "sleep 1000"))
        await eventually(lambda: "sleep 1000" in commands(marked(tmp_path)))
        begun = time.monotonic()
        await eventually(lambda: time.monotonic() - begun > 0.4)
        await provider.reap()
        assert provider.sessions
        await sandbox.shell_kill("main")
        assert (await call).status == "completed"
        await reap_until_empty(provider)


async def test_sandbox_that_is_used_past_the_provider_is_not_idle(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, ttl_minutes=0.3 / 60, exec_seconds=30) as provider:
        endpoint = (await provider.acquire("s1")).browser
        # The provider sees no browser connections either.
        api = SandboxApiClient(endpoint.url.removesuffix("/cdp"), endpoint.token)
        body = {"id": "main", "exec_dir": "", "command": "sleep 1000"}
        call = asyncio.create_task(api.post("shell/exec", body, seconds=60))
        await eventually(lambda: "sleep 1000" in commands(marked(tmp_path)))
        await eventually(lambda: local_idle_seconds(provider) > 0.3)
        await provider.reap()
        assert provider.sessions
        used = time.monotonic()
        await api.post("shell/kill", {"id": "main"}, seconds=10)
        await call
        assert await reap_until_empty(provider) - used >= 0.3
        await api.aclose()


async def test_reaper_cleans_up_after_a_crashed_sandbox(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, reap_seconds=0.02, exec_seconds=EXEC_SECONDS) as provider:
        sandbox = await provider.acquire("s1")
        await sandbox.shell_exec("main", "", STRAYS)
        await strays_started(tmp_path)
        os.kill(sandbox_processes(tmp_path)[0].pid, signal.SIGKILL)
        await eventually(lambda: marked(tmp_path) == [])


def unmarked() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", UNMARKED]]


async def test_close_ends_all_sandboxes_within_two_seconds_hung_ones_included(tmp_path: Path) -> None:
    async with LocalSandboxes(tmp_path, exec_seconds=EXEC_SECONDS) as provider:
        started = time.monotonic()
        sandboxes = await asyncio.gather(*(provider.acquire(f"s{n}") for n in range(4)))
        limit = scaled(2.5, time.monotonic() - started)
        await asyncio.gather(*(each.shell_exec("main", "", STRAYS) for each in sandboxes))
        await sandboxes[0].shell_exec("bare", "", f"env -i setsid sleep {UNMARKED}")
        await strays_started(tmp_path, count=16)
        await eventually(unmarked)
        os.kill(sandbox_processes(tmp_path, "s0")[0].pid, signal.SIGSTOP)
        provider.warm("s9")
        started = time.monotonic()
        await provider.close()
        took = time.monotonic() - started
    assert took < limit
    assert commands(marked(tmp_path)) == []
    assert not unmarked()
    assert (tmp_path / "sandboxes" / "s1" / "workspace").is_dir()
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await provider.acquire("s1")
    provider.warm("s1")
    await provider.close()


SERVICE = """
import asyncio, sys
from pathlib import Path
from app.infrastructure.sandbox.local.provider import LocalSandboxes

async def main():
    async with LocalSandboxes(Path(sys.argv[1]), exec_seconds=0.3) as provider:
        sandbox = await provider.acquire("s1")
        await sandbox.shell_exec("main", "", "echo kept > a.txt; " + sys.argv[2])
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def service(data_dir: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `SERVICE`: a process with a local sandbox in which `STRAYS` run. It is killed at the end."""
    arguments = (sys.executable, "-c", SERVICE, str(data_dir), STRAYS)
    process = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def test_killed_service_leaves_no_process_behind(tmp_path: Path) -> None:
    started = time.monotonic()
    async with service(tmp_path) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        limit = scaled(2, time.monotonic() - started)
        await strays_started(tmp_path)
    killed = time.monotonic()
    await eventually(lambda: marked(tmp_path) == [])
    assert time.monotonic() - killed < limit
    async with LocalSandboxes(tmp_path) as provider:
        sandbox = await provider.acquire("s1")
        assert (await sandbox.file_read("a.txt", start=None, end=None, sudo=False)).content == "kept\n"


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
async def test_service_killed_during_a_start_leaves_nothing_that_blocks_the_next(
    tmp_path: Path, seconds: float
) -> None:
    async with service(tmp_path):
        await eventually((tmp_path / "sandboxes" / "s1").exists)
        await asyncio.sleep(seconds)
    async with LocalSandboxes(tmp_path) as provider:
        sandbox = await provider.acquire("s1")
        await eventually(lambda: len(sandbox_processes(tmp_path)) == 1)
        assert (await sandbox.shell_exec("main", "", "echo hi")).output == "hi\n"


async def test_start_ends_left_over_processes_of_its_own_data_folder_only(tmp_path: Path) -> None:
    def stray(data_dir: Path) -> subprocess.Popen[bytes]:
        mark = ProcessMarks(data_dir / "sandboxes").mark("s1")
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


async def test_sweep_deletes_the_folders_of_unknown_sessions(tmp_path: Path) -> None:
    for name in ("gone", "known"):
        (tmp_path / "sandboxes" / name / "workspace").mkdir(parents=True)
    async with LocalSandboxes(tmp_path) as provider:
        await provider.acquire("running")
        assert await provider.sweep({"known"}) == 1
        assert {each.name for each in (tmp_path / "sandboxes").iterdir()} == {"known", "running"}
        assert await provider.find("running") is not None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without special rights")
def test_remove_tree_deletes_read_only_folders_without_root_rights() -> None:
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o777)
        script = (
            "import os, sys; from pathlib import Path\n"
            "from app.infrastructure.sandbox.local.session_folders import remove_tree\n"
            "os.setuid(65534); tree = Path(sys.argv[1]); (tree / 'a' / 'b').mkdir(parents=True)\n"
            "(tree / 'a' / 'b' / 'c').touch(); (tree / 'a' / 'b').chmod(0o500); (tree / 'a').chmod(0o000)\n"
            "tree.chmod(0o500); sys.exit(0 if remove_tree(tree) else 1)"
        )
        done = subprocess.run([sys.executable, "-c", script, Path(base) / "tree"], cwd=ROOT)
        assert done.returncode == 0
        assert not (Path(base) / "tree").exists()


def test_remove_tree_deletes_a_symlink_but_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    assert remove_tree(tmp_path / "tree")
    assert (tmp_path / "outside" / "precious").exists()
