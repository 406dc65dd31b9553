"""Local sandboxes, with real processes: how they start, what they may see, how they are shared."""

import asyncio
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox import process
from app.infrastructure.sandbox.local import LocalSandboxes
from app.infrastructure.sandbox.slot import Slot
from tests.integration.sandbox_processes import commands, marked, services
from tests.support.eventually import eventually


@pytest_asyncio.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalSandboxes]:
    async with LocalSandboxes(tmp_path) as provider:
        yield provider
    assert commands(marked(tmp_path)) == []


async def test_all_who_ask_at_once_get_one_process(provider: LocalSandboxes, tmp_path: Path) -> None:
    provider.warm("s1")
    provider.warm("s1")
    handles = await asyncio.gather(*(provider.acquire("s1") for _ in range(10)))
    assert all(handle is handles[0] for handle in handles)
    assert len(services(tmp_path)) == 1


async def test_a_caller_that_gives_up_does_not_stop_the_start_for_the_others(provider: LocalSandboxes) -> None:
    impatient = asyncio.create_task(provider.acquire("s1"))
    patient = asyncio.create_task(provider.acquire("s1"))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert (await (await patient).shell_exec("main", "", "echo hi")).output == "hi\n"


async def test_only_so_many_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, 0

    async def counted(self: Slot) -> object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.to_thread(time.sleep, 0.01)
        under_way -= 1
        raise SandboxUnavailable("only counted")

    monkeypatch.setattr(Slot, "_live", counted)
    async with LocalSandboxes(tmp_path, starts_at_once=2) as provider:
        await asyncio.gather(*(provider.acquire(f"s{n}") for n in range(5)), return_exceptions=True)
    assert most == 2


async def test_shells_work_in_the_sessions_workspace(provider: LocalSandboxes, tmp_path: Path) -> None:
    sandbox = await provider.acquire("s1")
    workspace = os.path.realpath(tmp_path / "sandboxes" / "s1" / "workspace")
    assert (await sandbox.shell_exec("main", "", "pwd; echo $HOME")).output == f"{workspace}\n{workspace}\n"
    assert (await sandbox.shell_exec("main", "/home/ubuntu", "pwd")).output == f"{workspace}\n"
    await sandbox.shell_exec("main", "", "echo hi > made.txt")
    assert (await sandbox.file_read("/home/ubuntu/made.txt", start=None, end=None, sudo=False)).content == "hi\n"
    assert Path(workspace, "made.txt").read_text() == "hi\n"


async def test_nothing_of_ours_is_in_the_shells_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        name: f"{marker}-7f3a9c"
        for name, marker in {
            "API_KEY": "sk-secret",
            "GOOGLE_SEARCH_API_KEY": "google-secret",
            "MONGODB_URL": "mongodb://user:secret",
            "API_TOKENS": "name:secret",
            "SANDBOX_TOKEN": "remote-secret",
            "npm_config__authToken": "npm-secret",
            "PIP_CLIENT_CERT": "pip-secret",
            "AWS_SECRET_ACCESS_KEY": "aws-secret",
            "PYTHONPATH": "/python-secret",
        }.items()
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example/simple")
    async with LocalSandboxes(tmp_path) as provider:
        sandbox = await provider.acquire("s1")
        told = (await sandbox.shell_exec("main", "", "env")).output
        everywhere = await sandbox.shell_exec(
            "main", "", "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c 7f3a9[c]"
        )
    assert "PIP_INDEX_URL=https://packages.example/simple" in told
    assert "SANDBOX_" not in told and not any(value in told for value in secrets.values())
    # pytest itself was started without them, so they would have to be in a process of the sandbox.
    assert everywhere.output == "0\n"


async def test_the_services_own_python_packages_are_out_of_the_shells_reach(provider: LocalSandboxes) -> None:
    sandbox = await provider.acquire("s1")
    found = await sandbox.shell_exec("main", "", "python3 -c 'import sys; print(sys.prefix)'; echo $VIRTUAL_ENV")
    assert sys.prefix == sys.base_prefix or not found.output.startswith(sys.prefix + "\n")


async def test_files_outside_the_workspace_and_the_temporary_folder_are_out_of_reach(tmp_path: Path) -> None:
    # Not below the system's temporary folder, which a sandbox may use.
    data = Path(__file__).parents[2] / "data" / f"test-{os.getpid()}"
    async with LocalSandboxes(data) as provider:
        try:
            sandbox, other = await provider.acquire("s1"), await provider.acquire("s2")
            await other.file_write("theirs.txt", "x", append=False, sudo=False)
            await sandbox.shell_exec("main", "", "ln -s /etc/passwd link; ln -s ../../s2/workspace folder")
            for path in (
                "/etc/passwd",
                "link",
                "folder/theirs.txt",
                "../../s2/workspace/theirs.txt",
                "/proc/1/environ",
            ):
                with pytest.raises(SandboxFailure, match="outside"):
                    await sandbox.file_read(path, start=None, end=None, sudo=False)
            for path in ("folder/new.txt", f"{data}/anker.db"):
                with pytest.raises(SandboxFailure, match="outside"):
                    await sandbox.file_write(path, "x", append=False, sudo=False)
            with pytest.raises(SandboxFailure, match="outside"):
                await sandbox.file_find("..", "*")
            note = tmp_path / "note.txt"
            assert await sandbox.file_write(str(note), "x", append=False, sudo=False) == 1
            whole = await sandbox.shell_exec("main", "", "echo hi")
            assert (await sandbox.file_read(whole.output_file, start=None, end=None, sudo=False)).content == "hi\n"
        finally:
            await provider.sweep(())
            await provider.destroy("s1")
            await provider.destroy("s2")
    assert [each.name for each in (data / "sandboxes").iterdir()] == [".running"]
    shutil.rmtree(data)


async def test_a_process_that_died_is_started_again_with_its_files(provider: LocalSandboxes, tmp_path: Path) -> None:
    first = await provider.acquire("s1")
    await first.file_write("kept.txt", "still here", append=False, sudo=False)
    await first.shell_exec("main", "", "setsid sleep 1001 &")
    os.kill(services(tmp_path)[0].pid, signal.SIGKILL)
    with pytest.raises(SandboxUnavailable):
        await first.shell_exec("main", "", "sleep 60")
    async with asyncio.timeout(30):
        while await provider.find("s1") is not None:
            await asyncio.sleep(0.01)
    second = await provider.acquire("s1")
    assert second is not first
    assert (await second.file_read("kept.txt", start=None, end=None, sudo=False)).content == "still here"
    assert not [line for line in commands(marked(tmp_path)) if "sleep" in line]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sandbox program that dies at its start."""
    program = tmp_path / "broken" / "sandbox"
    program.mkdir(parents=True)
    (program / "__main__.py").write_text("import sys; sys.exit('SANDBOX_HOME: no such luck')")
    monkeypatch.setattr(process, "REPOSITORY", program.parent)
    return program


async def test_a_start_that_fails_is_logged_once_and_told_to_those_who_ask(
    provider: LocalSandboxes, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*(provider.acquire("s1") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, SandboxUnavailable) and "did not start" in str(each) for each in outcomes)
    assert "no such luck" not in str(outcomes[0])
    assert caplog.text.count("SANDBOX_HOME: no such luck") == 1


async def test_a_warm_up_that_fails_shows_when_the_sandbox_is_asked_for(
    provider: LocalSandboxes, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    provider.warm("s1")
    await eventually(lambda: "no such luck" in caplog.text)
    with pytest.raises(SandboxUnavailable):
        await provider.acquire("s1")
    assert await provider.find("s1") is None


async def test_check_tells_what_is_missing(
    provider: LocalSandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await provider.check() is None
    (tmp_path / "file").write_text("")
    assert "DATA_DIR" in (await LocalSandboxes(tmp_path / "file").check() or "")
    assert "DATA_DIR" in (await LocalSandboxes(tmp_path / "a:b").check() or "")
    monkeypatch.setenv("PATH", "")
    assert "bash" in (await provider.check() or "")
