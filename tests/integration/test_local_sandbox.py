"""Local sandboxes as real processes: their start, their environment, and what they can reach."""

import asyncio
import io
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.local import process
from app.infrastructure.sandbox.local.process import SandboxProcess
from app.infrastructure.sandbox.local.provider import STARTS_AT_ONCE, LocalSandboxes
from tests.integration.sandbox_processes import commands, marked, sandbox_processes
from tests.support.eventually import eventually


@pytest_asyncio.fixture
async def provider(tmp_path: Path) -> AsyncIterator[LocalSandboxes]:
    async with LocalSandboxes(tmp_path) as provider:
        yield provider
    assert commands(marked(tmp_path)) == []


async def test_concurrent_acquires_share_one_process(provider: LocalSandboxes, tmp_path: Path) -> None:
    provider.warm("s1")
    provider.warm("s1")
    sandboxes = await asyncio.gather(*(provider.acquire("s1") for _ in range(10)))
    assert len({sandbox.instance_id for sandbox in sandboxes}) == 1
    assert len(sandbox_processes(tmp_path)) == 1


async def test_concurrent_starts_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starting, maximum, may_end = 0, 0, asyncio.Event()

    async def spawn(*_: object, **__: object) -> SandboxProcess:
        nonlocal starting, maximum
        starting += 1
        maximum = max(maximum, starting)
        await may_end.wait()
        starting -= 1
        raise SandboxUnavailable("nothing is started here")

    monkeypatch.setattr(SandboxProcess, "spawn", spawn)
    async with LocalSandboxes(tmp_path) as provider:
        starts = asyncio.gather(*(provider.acquire(f"s{n}") for n in range(STARTS_AT_ONCE + 2)), return_exceptions=True)
        await eventually(lambda: starting == STARTS_AT_ONCE)
        may_end.set()
        await starts
    assert maximum == STARTS_AT_ONCE


async def test_picture_of_the_workspace_is_returned_scaled(provider: LocalSandboxes, tmp_path: Path) -> None:
    sandbox = await provider.acquire("s1")
    workspace = tmp_path / "sandboxes" / "s1" / "workspace"
    Image.new("RGB", (2000, 1000)).save(workspace / "a.png")
    found = await sandbox.file_image("~/a.png", max_side=100)
    assert (found.original_width, found.original_height) == (2000, 1000)
    assert Image.open(io.BytesIO(found.jpeg)).size == (100, 50)
    with pytest.raises(SandboxFailure, match="not allowed"):
        await sandbox.file_image("/etc/passwd", max_side=100)
    await sandbox.file_write("b.png", "text", append=False, sudo=False)
    with pytest.raises(SandboxFailure, match="not a picture"):
        await sandbox.file_image("b.png", max_side=100)


async def test_shell_starts_in_the_sessions_workspace(provider: LocalSandboxes, tmp_path: Path) -> None:
    sandbox = await provider.acquire("s1")
    workspace = os.path.realpath(tmp_path / "sandboxes" / "s1" / "workspace")
    assert (await sandbox.shell_exec("main", "", "pwd; echo $HOME")).output == f"{workspace}\n{workspace}\n"
    assert (await sandbox.shell_exec("main", "/home/ubuntu", "pwd")).output == f"{workspace}\n"
    await sandbox.shell_exec("main", "", "echo hi > made.txt")
    assert (await sandbox.file_read("/home/ubuntu/made.txt", start=None, end=None, sudo=False)).content == "hi\n"
    assert Path(workspace, "made.txt").read_text() == "hi\n"


async def test_shell_environment_holds_no_secrets_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        environment = (await sandbox.shell_exec("main", "", "env")).output
        in_any_process = await sandbox.shell_exec(
            "main", "", "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c 7f3a9[c]"
        )
    assert "PIP_INDEX_URL=https://packages.example/simple" in environment
    assert "SANDBOX_" not in environment and not any(value in environment for value in secrets.values())
    # pytest itself was started without the secrets, so only a process of the sandbox could show them.
    assert in_any_process.output == "0\n"


async def test_shell_python_is_not_the_services_virtual_environment(provider: LocalSandboxes) -> None:
    sandbox = await provider.acquire("s1")
    found = await sandbox.shell_exec("main", "", "python3 -c 'import sys; print(sys.prefix)'; echo $VIRTUAL_ENV")
    assert sys.prefix == sys.base_prefix or not found.output.startswith(sys.prefix + "\n")


async def test_file_api_outside_workspace_and_temporary_folder_is_refused(tmp_path: Path) -> None:
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
            assert (await sandbox.file_write(str(note), "x", append=False, sudo=False)).count == 1
            whole = await sandbox.shell_exec("main", "", "echo hi")
            assert (await sandbox.file_read(whole.output_file, start=None, end=None, sudo=False)).content == "hi\n"
        finally:
            await provider.destroy("s1")
            await provider.destroy("s2")
    assert list((data / "sandboxes").iterdir()) == []
    shutil.rmtree(data)


async def test_workspace_is_readable_by_its_owner_only(provider: LocalSandboxes, tmp_path: Path) -> None:
    await provider.acquire("s1")
    assert (tmp_path / "sandboxes" / "s1").stat().st_mode & 0o777 == 0o700


async def test_sandbox_that_died_is_replaced_and_keeps_its_files(provider: LocalSandboxes, tmp_path: Path) -> None:
    first = await provider.acquire("s1")
    await first.file_write("kept.txt", "still here", append=False, sudo=False)
    await first.shell_exec("main", "", "setsid sleep 1001 &")
    known = first.instance_id
    os.kill(sandbox_processes(tmp_path)[0].pid, signal.SIGKILL)
    assert (await first.file_read("kept.txt", start=None, end=None, sudo=False)).content == "still here"
    assert (await provider.acquire("s1")).instance_id == first.instance_id != known
    assert not [line for line in commands(marked(tmp_path)) if "sleep" in line]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the sandbox's program by one that ends at its start."""
    program = tmp_path / "broken" / "sandbox"
    program.mkdir(parents=True)
    (program / "__main__.py").write_text("import sys; sys.exit('SANDBOX_HOME: no such luck')")
    monkeypatch.setattr(process, "REPOSITORY", program.parent)
    return program


async def test_failed_start_logs_the_output_once_and_fails_every_acquire(
    provider: LocalSandboxes, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*(provider.acquire("s1") for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, SandboxUnavailable) and "did not start" in str(each) for each in outcomes)
    assert "no such luck" not in str(outcomes[0])
    assert caplog.text.count("SANDBOX_HOME: no such luck") == 1


async def test_failed_warm_up_is_logged_and_acquire_tries_again(
    provider: LocalSandboxes, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider.warm("s1")
    await eventually(lambda: "no such luck" in caplog.text)
    with pytest.raises(SandboxUnavailable):
        await provider.acquire("s1")
    assert await provider.find("s1") is None


async def test_check_returns_what_is_missing(
    provider: LocalSandboxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await provider.check() is None
    (tmp_path / "file").write_text("")
    assert "DATA_DIR" in (await LocalSandboxes(tmp_path / "file").check() or "")
    assert "DATA_DIR" in (await LocalSandboxes(tmp_path / "a:b").check() or "")
    monkeypatch.setenv("PATH", "")
    assert "bash" in (await provider.check() or "")
