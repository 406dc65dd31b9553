"""Exports of real workspaces: what a hostile sandbox puts there, while a run goes on, and after the sandbox."""

import asyncio
import json
import os
import stat
import subprocess
from contextlib import suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import pytest

from tests.fakes.scripted_openai import Reply
from tests.integration.docker_sessions.conftest import (
    DockerService,
    calling,
    complete,
    plan,
    shell,
    wait_for_completed_call,
)
from tests.support.containers import docker
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = r"""
import os, socket
os.chdir(os.path.expanduser('~'))
names = ['new\nline', '..\\..\\evil', 'C:\\evil', '-rf', '...', ' x ', 'tab\t', 'Read.me', 'read.ME', '\u202egnp.exe']
for name in (*names, 'a' * 255, 'é' * 127):
    open(name, 'w').write(name)
open(b'\xff.txt', 'w').write('x')
deep = '/'.join(['d' * 200] * 6)
os.makedirs(deep)
open(deep + '/deep.txt', 'w').write('deep')
os.makedirs('empty')
os.symlink('/etc/passwd', 'passwd')
os.symlink('/', 'root')
os.symlink('.', 'loop')
os.mkfifo('pipe')
socket.socket(socket.AF_UNIX).bind('socket')
open('hidden', 'w').close()
os.chmod('hidden', 0)
for name, size in (('sparse', 1 << 26), ('huge', 1 << 31)):
    open(name, 'w').truncate(size)
"""
"""A program that fills the workspace with everything that a file system allows."""

NAMES = {
    "new%0Aline": "new\nline",
    "..%5C..%5Cevil": "..\\..\\evil",
    "C%3A%5Cevil": "C:\\evil",
    "-rf": "-rf",
    "..%2E": "...",
    " x%20": " x ",
    "tab%09": "tab\t",
    "Read.me": "Read.me",
    "\u202egnp.exe": "\u202egnp.exe",
}
"""Names in the archive of files whose content is their original name."""

PROFILE = "~/.config/anker-browser/profile"
"""Folder of the browser, which the agent may not read."""

LARGE = "large-file-of-the-test-of-exports"


async def export(service: DockerService, session: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Export and extract a session, check every hash, and return the folder and the manifest."""
    archive = folder / "export.zip"
    async with service.client.http.stream("GET", f"/api/v1/sessions/{session}/export") as response:
        assert response.status_code == 200
        with archive.open("wb") as file:
            async for chunk in response.aiter_bytes():
                file.write(chunk)
    return await asyncio.to_thread(_extract, archive, folder / "extracted")


def _extract(archive: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    with ZipFile(archive) as opened:
        assert opened.testzip() is None
        entries = opened.infolist()
        opened.extractall(folder)
    names = [entry.filename for entry in entries]
    assert len({name.casefold() for name in names}) == len(names)
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        assert parts[0] != "/" and ".." not in parts and stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
    extracted = [path for path in folder.rglob("*") if not path.is_dir()]
    assert sorted(str(path.relative_to(folder)) for path in extracted) == sorted(names)
    assert not any(path.is_symlink() for path in extracted)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["sha256sums_sha256"] == sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()
    assert [each["name"] for each in manifest["entries"]] == names[:-2]
    for each in manifest["entries"]:
        assert (folder / each["name"]).stat().st_size == each["size"]
    return folder, manifest


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


async def test_export_of_hostile_workspace_extracts_to_plain_files_with_their_hashes(
    service: DockerService, session: str, tmp_path: Path
) -> None:
    service.model.reset(
        [
            plan(),
            calling("file_write", file="/tmp/hostile.py", content=HOSTILE),
            shell("python3 /tmp/hostile.py"),
            calling("browser_navigate", url="about:blank"),
            complete(),
            Reply(text="Done."),
        ]
    )
    assert (await service.client.send_and_read(session, "Do it"))[-1].event == "done"
    folder, manifest = await export(service, session, tmp_path)
    files = {path.name: path for path in (folder / "files").rglob("*") if path.is_file()}
    assert {name: files[name].read_text() for name in NAMES} == NAMES
    assert [files[name].read_text() for name in ("Read.me", "read.ME~2")] == ["Read.me", "read.ME"]
    assert sorted(path.read_text()[0] for name, path in files.items() if len(name) > 100) == ["a", "é"]
    assert [path.read_text() for path in (folder / "files-with-long-paths").rglob("*") if path.is_file()] == ["deep"]
    assert (folder / "files" / "sparse").stat().st_size == 1 << 26
    assert {each["path"]: each["reason"] for each in manifest["missing"]} == {
        **dict.fromkeys(("~/passwd", "~/root", "~/loop"), "a symbolic link"),
        **dict.fromkeys(("~/pipe", "~/socket"), "no regular file"),
        **{name: f"permission denied: {name}" for name in ("~/hidden", PROFILE)},
        "~/?.txt": "no such file: ~/?.txt",  # its name is not Unicode text
        "~/huge": f"{1 << 31} bytes do not fit into EXPORT_MAX_BYTES",
    }
    pictures = list((folder / "pictures").iterdir())
    assert pictures and all(path.read_bytes()[:2] == b"\xff\xd8" for path in pictures)
    actions = [each["record"]["action"] for each in lines(folder / "audit.jsonl")]
    assert actions == ["session.create", "message.send", "session.export"]
    events = (await service.client.get_session(session))["events"]
    assert lines(folder / "events.jsonl") == events


async def is_file(service: DockerService, session: str, path: str) -> bool:
    response = await service.client.http.post(f"/api/v1/sessions/{session}/file", json={"file": path})
    return response.status_code == 200


async def test_export_during_a_run_is_complete_up_to_its_beginning(
    service: DockerService, session: str, tmp_path: Path
) -> None:
    work = "for n in $(seq 100000); do echo $n >> growing; cp growing copy; done"
    service.model.reset([plan(), shell("echo one > one.txt"), shell(work)])
    chat = await service.client.send_message(session, "Work")
    await wait_for_completed_call(chat, "shell_exec")
    await chat.wait_for("tool", status="calling", args={"id": "main", "exec_dir": "~", "command": work})
    await eventually(lambda: is_file(service, session, "copy"), seconds=60)
    folder, manifest = await export(service, session, tmp_path)
    assert not chat.ended.is_set()
    assert len(lines(folder / "events.jsonl")) == manifest["last_event"] >= 4
    assert (folder / "files" / "one.txt").read_text() == "one\n"
    assert (folder / "files" / "growing").read_text().startswith("1\n2\n")
    assert (await service.client.stop_run(session)).status_code == 200
    assert (await chat.read_all())[-1].event == "done"


async def test_export_after_the_container_is_removed_has_the_files_of_its_volume(
    service: DockerService, session: str, tmp_path: Path
) -> None:
    service.model.reset([plan(), shell("echo kept > kept.txt"), complete(), Reply(text="Done.")])
    await service.client.send_and_read(session, "Do it")
    await docker("rm", "--force", service.container_name(session))
    folder, manifest = await export(service, session, tmp_path)
    assert (folder / "files" / "kept.txt").read_text() == "kept\n"
    assert [each["path"] for each in manifest["missing"]] in ([], [PROFILE])


def readers_of(name: str) -> list[str]:
    """Return the open files of this name in all processes of the machine, those of containers too."""
    found: list[str] = []
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(descriptor).endswith(name):
                found.append(str(descriptor))
    return found


async def test_export_whose_client_leaves_closes_its_file_in_the_sandbox(service: DockerService, session: str) -> None:
    service.model.reset([plan(), shell(f"truncate -s 1000M {LARGE}"), complete(), Reply(text="Done.")])
    await service.client.send_and_read(session, "Do it")
    async with service.client.http.stream("GET", f"/api/v1/sessions/{session}/export") as response:
        chunks = response.aiter_bytes()
        received = 0
        while received < 8 << 20:
            received += len(await anext(chunks))
        await eventually(lambda: asyncio.to_thread(readers_of, LARGE))
    await eventually(lambda: asyncio.to_thread(lambda: not readers_of(LARGE)), seconds=20)
