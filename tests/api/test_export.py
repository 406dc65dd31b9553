"""`GET /sessions/{id}/export`: a complete archive that can be checked, or one that cannot be opened."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from starlette.types import Message

from app.application.services.export import MAX_PATH_BYTES, ArchiveEntry, archive_names, archive_path
from app.domain.errors import SandboxUnavailable, StoreUnavailable
from app.domain.models.event import ToolCalledEvent
from app.domain.models.message import AssistantMessage, ProviderFields, UserMessage
from app.domain.models.sandbox import FolderEntry
from app.domain.models.tool import ToolResult
from app.domain.repositories.event_log import Commit
from app.interfaces.api.export import zip_chunks
from app.interfaces.api.services import provide
from tests.fakes.memory_sandbox import HOME, MemorySandbox
from tests.support.api_harness import API, COMMIT_TIME, ApiHarness


@pytest.fixture
async def harness() -> AsyncIterator[ApiHarness]:
    harness = ApiHarness()
    yield harness
    await harness.close()


async def export(harness: ApiHarness, session_id: str) -> zipfile.ZipFile:
    response = await harness.client.get(f"{API}/{session_id}/export")
    assert response.status_code == 200 and response.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    return archive


async def export_of_workspace(harness: ApiHarness) -> tuple[zipfile.ZipFile, dict[str, Any]]:
    archive = await export(harness, await harness.create_session())
    return archive, json.loads(archive.read("manifest.json"))


async def open_sandbox(harness: ApiHarness) -> tuple[str, MemorySandbox]:
    session_id = await harness.create_session()
    return session_id, await harness.sandboxes.acquire(session_id)


def entry(name: str, *, kind: str = "file", size: int = 1) -> FolderEntry:
    return FolderEntry(name=name, kind=kind, size=size, modified=COMMIT_TIME)


async def test_archive_contains_the_session_and_its_hashes(harness: ApiHarness) -> None:
    session_id, sandbox = await open_sandbox(harness)
    sandbox.files[f"{HOME}/notes/a.md"] = "Notes"
    await harness.send_message(session_id, {"message": "Hello"})
    secret = ProviderFields(source="m", message={"reasoning": "hidden thoughts"})
    messages = [UserMessage(content=f"m{index}") for index in range(120)]
    commit = Commit(
        timestamp=COMMIT_TIME,
        messages=[
            *(("planner", message) for message in messages),
            ("executor", AssistantMessage(content="Done", provider_fields=secret)),
        ],
    )
    await harness.store.commit(session_id, commit)
    address = await harness.screenshots.keep(session_id, b"\xff\xd8jpeg")
    archive = await export(harness, session_id)
    history = await harness.list_events(session_id)
    assert [json.loads(line) for line in archive.read("events.jsonl").splitlines()] == history
    planner = [json.loads(line)["content"] for line in archive.read("transcripts/planner.jsonl").splitlines()]
    assert planner == [message.content for message in messages]
    assert b"hidden" not in archive.read("transcripts/executor.jsonl")
    assert archive.read(f"pictures/{address.rpartition('/')[2]}.jpg") == b"\xff\xd8jpeg"
    assert archive.read("files/notes/a.md") == b"Notes"
    records = [json.loads(line) for line in archive.read("audit.jsonl").splitlines()]
    assert [each["record"]["action"] for each in records] == ["session.create", "message.send", "session.export"]
    assert {each["hash"] for each in records} == {record.hash for record in harness.audit_log.records}
    names = archive.namelist()
    sums = archive.read("SHA256SUMS").decode().splitlines()
    assert sums == [f"{sha256(archive.read(name)).hexdigest()}  {name}" for name in names[:-2]]
    manifest = json.loads(archive.read("manifest.json"))
    assert manifest["sha256sums_sha256"] == sha256(archive.read("SHA256SUMS")).hexdigest()
    assert [each["size"] for each in manifest["entries"]] == [len(archive.read(name)) for name in names[:-2]]
    assert (names[-2:], manifest["missing"]) == (["SHA256SUMS", "manifest.json"], [])


async def test_session_that_used_no_sandbox_starts_none(harness: ApiHarness) -> None:
    archive, manifest = await export_of_workspace(harness)
    assert harness.sandboxes.starts == 0
    assert manifest["missing"] == [{"path": "~", "reason": "the session has used no sandbox"}]
    assert "events.jsonl" in archive.namelist()


async def test_sandbox_that_ended_is_started_for_its_files(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    called = ToolCalledEvent(
        tool_call_id="1",
        name="shell",
        function="shell_exec",
        args={},
        content=None,
        result=ToolResult(success=True, text=""),
    )
    await harness.commit_events(session_id, called)
    harness.sandboxes.prepare(session_id).files[f"{HOME}/a.txt"] = "A"
    assert (await export(harness, session_id)).read("files/a.txt") == b"A"
    assert harness.sandboxes.starts == 1


async def test_sandbox_that_cannot_start_is_named_in_the_manifest(harness: ApiHarness) -> None:
    session_id, sandbox = await open_sandbox(harness)
    sandbox.failure = SandboxUnavailable("the engine is away")
    manifest = json.loads((await export(harness, session_id)).read("manifest.json"))
    assert manifest["missing"] == [
        {"path": "~", "reason": "this folder and all that follow: the engine is away"},
    ]


async def test_sandbox_that_has_just_ended_is_replaced_for_its_files(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, ended = await open_sandbox(harness)
    ended.failure = SandboxUnavailable("it does not run")
    started = MemorySandbox()
    started.files[f"{HOME}/a.txt"] = "A"

    async def acquire(_: str) -> MemorySandbox:
        return started

    monkeypatch.setattr(harness.sandboxes, "acquire", acquire)
    assert (await export(harness, session_id)).read("files/a.txt") == b"A"


async def test_client_that_leaves_ends_the_download_from_the_sandbox(
    harness: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, sandbox = await open_sandbox(harness)
    sandbox.files[f"{HOME}/endless"] = "x"
    has_ended = False
    sending = asyncio.Event()

    async def endless(_: str) -> AsyncGenerator[bytes, None]:
        nonlocal has_ended
        try:
            while True:
                yield bytes(100_000)
        finally:
            has_ended = True

    async def receive() -> Message:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            sending.set()
            await asyncio.Event().wait()

    archives: list[AsyncGenerator[bytes, None]] = []  # garbage collection must not be what ends them

    def keep(entries: AsyncGenerator[ArchiveEntry, None]) -> AsyncGenerator[bytes, None]:
        archives.append(zip_chunks(entries))
        return archives[0]

    unlimited = replace(harness.services.export, max_bytes=1 << 40)
    provide(harness.app, replace(harness.services, export=unlimited))
    monkeypatch.setattr("app.interfaces.api.export.zip_chunks", keep)
    monkeypatch.setattr(sandbox, "file_download", endless)
    path = f"{API}/{session_id}/export"
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "query_string": b"", "headers": []}
    async with asyncio.timeout(10):
        await harness.app({**scope, "asgi": {"spec_version": "2.3"}}, receive, send)
    assert has_ended


async def test_what_is_no_plain_file_or_too_large_is_left_out_with_a_reason(harness: ApiHarness) -> None:
    session_id, sandbox = await open_sandbox(harness)
    sandbox.files |= {f"{HOME}/big": "x" * 600, f"{HOME}/grown": "x" * 600, f"{HOME}/small": "x"}
    sandbox.listed[HOME] = [
        entry("big", size=600),
        entry("gone"),
        entry("grown", size=1),
        entry("link", kind="link"),
        entry("pipe", kind="other"),
        entry("small"),
        entry("sparse", size=1 << 40),
    ]
    archive = await export(harness, session_id)
    manifest = json.loads(archive.read("manifest.json"))
    assert {each["path"]: each["reason"] for each in manifest["missing"]} == {
        "~/gone": "no such file: ~/gone",
        "~/grown": "the rest does not fit into EXPORT_MAX_BYTES",
        "~/link": "a symbolic link",
        "~/pipe": "no regular file",
        "~/sparse": f"{1 << 40} bytes do not fit into EXPORT_MAX_BYTES",
    }
    assert [name for name in archive.namelist() if name.startswith("files/")] == [
        "files/big",
        "files/grown",
        "files/small",
    ]


HOSTILE = ["..", ".", "", "/etc/passwd", "../../x", "a/b", "nul\0", "x" * 256]


async def test_hostile_listing_cannot_name_anything_outside_the_archive(harness: ApiHarness) -> None:
    session_id, sandbox = await open_sandbox(harness)
    sandbox.listed[HOME] = [entry(name) for name in (*HOSTILE, "..\\evil", "C:\\evil", "new\nline", "ok")]
    for name in ("..\\evil", "C:\\evil", "new\nline", "ok"):
        sandbox.files[f"{HOME}/{name}"] = name
    archive = await export(harness, session_id)
    manifest = json.loads(archive.read("manifest.json"))
    files = {each["name"]: each.get("path") for each in manifest["entries"] if each["name"].startswith("files")}
    assert files == {
        "files/..%5Cevil": "~/..\\evil",
        "files/C%3A%5Cevil": "~/C:\\evil",
        "files/new%0Aline": "~/new\nline",
        "files/ok": None,
    }
    assert manifest["missing"] == [{"path": "~", "reason": "8 entries with impossible names"}]


async def test_folders_without_end_are_cut_off(harness: ApiHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id, sandbox = await open_sandbox(harness)

    class Endless(dict[str, list[FolderEntry]]):
        def get(self, key: str, default: object = None) -> Any:
            return [entry("d", kind="directory"), entry("f")]

    sandbox.listed = Endless()
    manifest = json.loads((await export(harness, session_id)).read("manifest.json"))
    reasons = {each["reason"] for each in manifest["missing"]}
    assert "more than 64 folders deep" in reasons
    monkeypatch.setattr("app.application.services.export.MAX_FILES", 10)
    manifest = json.loads((await export(harness, session_id)).read("manifest.json"))
    assert manifest["missing"][-1]["reason"] == "this and all that follow: more than 10 entries"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Read.me", "read.ME", "READ.me"], ["Read.me", "read.ME~2", "READ.me~3"]),
        (["a~2", "A", "a"], ["a~2", "A", "a~3"]),
        (["é", "e\u0301"], ["é", "e\u0301~2"]),
        (["dot.", "space ", "tab\t"], ["dot%2E", "space%20", "tab%09"]),
        (["报告.txt", "🙂"], ["报告.txt", "🙂"]),
        (["half\ud800"], ["half%3F"]),
    ],
    ids=["case", "taken", "accents", "ends", "unicode", "surrogate"],
)
def test_names_of_one_folder_stay_apart_and_harmless(names: list[str], expected: list[str]) -> None:
    assert archive_names(names) == expected


def test_long_names_and_paths_are_shortened_and_stay_apart() -> None:
    first, second = archive_names(["é" * 127 + "1", "é" * 127 + "2"])
    assert first != second and len(first.encode()) <= 200
    paths = {archive_path("files/" + "d/" * 500 + last, "a.txt") for last in ("x", "y")}
    assert len(paths) == 2 and all(len(path.encode()) <= MAX_PATH_BYTES for path in paths)


async def test_export_of_another_owners_or_missing_session_is_404(harness: ApiHarness) -> None:
    await harness.store.create("theirs", owner="eve", at=0)
    for session_id in ("theirs", "missing"):
        for method in ("GET", "HEAD"):
            assert (await harness.client.request(method, f"{API}/{session_id}/export")).status_code == 404
    assert harness.audit_log.entries == []


async def test_head_request_exports_and_records_nothing(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    response = await harness.client.head(f"{API}/{session_id}/export")
    assert (response.status_code, response.content) == (200, b"")
    assert len(harness.audit_log.entries) == 1


async def test_ticket_opens_the_export_once(harness: ApiHarness) -> None:
    session_id = await harness.create_session()
    issued = await harness.client.post("/api/v1/tickets", json={"session_id": session_id})
    address = f"{API}/{session_id}/export?ticket={issued.json()['data']['ticket']}"
    assert [(await harness.client.get(address)).status_code for _ in range(2)] == [200, 401]


async def test_store_that_fails_meanwhile_leaves_an_archive_that_cannot_be_opened() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"x" * 200_000
        raise StoreUnavailable("no primary")

    async def entries() -> AsyncGenerator[ArchiveEntry, None]:
        yield ArchiveEntry(name="events.jsonl", chunks=chunks(), is_text=False, modified=0)

    sent = b""
    with pytest.raises(StoreUnavailable):
        async for part in zip_chunks(entries()):
            sent += part
    assert len(sent) >= 200_000
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(sent))
