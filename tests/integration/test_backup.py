"""Backup and restore: a backup is made while the service runs, and its sessions go on in another place."""

import asyncio
import contextlib
import os
import secrets
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pymongo
import pytest

from app.backup import load, save
from app.domain.errors import AnkerError, StoreUnavailable
from app.domain.models.event import MessageEvent
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.mongo.store import MongoStore
from app.infrastructure.persistence.sqlite.database import MIGRATIONS
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event
from app.settings import Settings, load_settings
from tests.fakes.scripted_openai import Answer, Asked, Call, Reply, ScriptedOpenAI
from tests.support.cluster import SandboxProcess
from tests.support.eventually import eventually
from tests.support.invariants import check_log
from tests.support.service import ROOT, ApiClient, ServiceProcess
from tests.support.stores import Mongod, require_mongod

STORES = ("sqlite", "mongodb")

CALLS = {
    "write": Call("file_write", {"file": "~/note.txt", "content": "Written before the backup.\n"}),
    "ask": Call("message_ask_user", {"text": "Which colour?"}),
    "sleep": Call("shell_exec", {"id": "main", "exec_dir": "~", "command": "sleep 600"}),
}
"""The first call of a run by a word in the user's message."""


def script(asked: Asked) -> Answer:
    """Carry out a plan of one step, whose only call follows from the user's message."""
    word = next(word for word in CALLS if f"please {word}".encode() in asked.raw)
    if asked.kind == "planning":
        steps = [{"id": "1", "description": f"please {word}"}]
        return Reply(calls=[Call("create_plan", {"title": word, "message": "Yes.", "goal": word, "steps": steps})])
    if asked.kind == "final":
        return Reply(text="All is done.")
    made = [call["function"]["name"] for message in asked.messages for call in message.get("tool_calls") or ()]
    if CALLS[word].name in made:
        return Reply(calls=[Call("complete_step", {"success": True, "result": "Done."})])
    return Reply(calls=[CALLS[word]])


@pytest.fixture(scope="module")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    require_mongod()
    server = Mongod(tmp_path_factory.mktemp("mongod"))
    server.start()
    yield server
    server.kill()


@dataclass
class Place:
    """A store of an installation: a directory, or a database."""

    folder: Path
    settings: dict[str, str]

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    async def backup(self, file: Path) -> str:
        """Make a backup and return the id of the installation that is printed."""
        return (await asyncio.to_thread(save, self._settings, file)).split()[-5].rstrip(",")

    async def restore(self, file: Path, *, replace: bool = False) -> str:
        """Restore a backup and return the id of the installation that is printed."""
        return (await asyncio.to_thread(load, self._settings, file, replace=replace)).split()[-1]

    async def refusal(self, command: Callable[..., str], file: Path) -> str:
        """Make or restore a backup, which must be refused, and return the reason."""
        options = {} if command is save else {"replace": False}
        with pytest.raises(AnkerError) as caught:
            await asyncio.to_thread(command, self._settings, file, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the program for this store, as a process."""
        environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(self.data_dir), "PORT": "0", **self.settings}
        return subprocess.run(
            [sys.executable, "-m", "app", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def _settings(self) -> Settings:
        values: dict[str, object] = {name.lower(): value for name, value in self.settings.items()}
        return load_settings(_env_file=None, data_dir=self.data_dir, **values)

    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[SqliteStore | MongoStore, None]:
        url = self.settings.get("MONGODB_URL", "")
        database = self.settings.get("MONGODB_DATABASE", "")
        async with (
            MongoStore(url, database, encode=encode_event, on_committed=lambda *_: None)
            if url
            else SqliteStore(self.data_dir, encode=encode_event, on_committed=lambda *_: None)
        ) as store:
            yield store


MakePlace = Callable[[str], Place]


@pytest.fixture(params=STORES)
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> MakePlace:
    """Return a function that returns an empty place by its name."""

    def make(name: str) -> Place:
        folder = tmp_path / name
        folder.mkdir()
        settings: dict[str, str] = {}
        if request.param == "mongodb":
            server: Mongod = request.getfixturevalue("mongod")
            settings = {"MONGODB_URL": server.url, "MONGODB_DATABASE": f"{name}_{secrets.token_hex(4)}"}
        return Place(folder, settings)

    return make


@pytest.fixture
def make_sqlite_place(tmp_path: Path) -> MakePlace:
    def make(name: str) -> Place:
        (tmp_path / name).mkdir()
        return Place(tmp_path / name, {})

    return make


async def histories(client: ApiClient, session_ids: Mapping[str, str]) -> dict[str, bytes]:
    return {word: (await client.http.get(f"/api/v1/sessions/{each}")).content for word, each in session_ids.items()}


async def list_sessions(client: ApiClient, session_ids: Mapping[str, str]) -> list[str]:
    """Return which of these sessions are listed, in order. The order of others changes while their runs go on."""
    listed = (await client.http.get("/api/v1/sessions")).json()["data"]["sessions"]
    return [each["session_id"] for each in listed if each["session_id"] in session_ids.values()]


async def test_sessions_go_on_from_a_backup_restored_elsewhere(make_place: MakePlace, tmp_path: Path) -> None:
    original, copy = make_place("original"), make_place("copy")
    file = tmp_path / "anker.backup"
    async with AsyncExitStack() as stack:
        model = stack.enter_context(ScriptedOpenAI(script))
        settings = {"API_KEY": "sk-0123456789", "API_BASE": model.url, **original.settings}
        if original.settings:  # local sandboxes belong to one process and its SQLite
            settings |= (await stack.enter_async_context(SandboxProcess(tmp_path / "sandbox"))).settings
        first = ServiceProcess(original.data_dir, **settings)
        client = await first.start()
        session_ids = {word: await client.create_session() for word in (*CALLS, "nothing")}
        streams = {word: await client.send_message(session_ids[word], f"please {word}") for word in CALLS}
        await streams["write"].wait_for("done")
        await streams["ask"].wait_for("wait")
        await streams["sleep"].wait_for("tool", status="calling")
        done = await asyncio.to_thread(original.run, "backup", str(file))
        assert (done.returncode, done.stderr) == (0, "")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [each for each in tmp_path.iterdir() if each.is_file()] == [file]
        resting = {word: each for word, each in session_ids.items() if word != "sleep"}
        before = await histories(client, resting)
        listed = await list_sessions(client, resting)
        await client.close()
        await first.kill()

        done = await asyncio.to_thread(copy.run, "restore", str(file))
        assert (done.returncode, done.stderr) == (0, "")
        if not copy.settings:
            files = tmp_path / "sandboxes.tar"
            subprocess.run(["tar", "-C", original.data_dir, "-cf", files, "sandboxes"], check=True)
            subprocess.run(["tar", "-C", copy.data_dir, "-xf", files], check=True)
        second = ServiceProcess(copy.data_dir, **{**settings, **copy.settings})
        client = await second.start()
        stack.push_async_callback(second.stop)
        stack.push_async_callback(client.close)

        assert await histories(client, resting) == before
        assert await list_sessions(client, resting) == listed
        frames = await client.send_and_read(session_ids["ask"], "Blue.")
        assert frames[-1].event == "done"
        # The run that was interrupted is resumed; the outcome of its call is unknown.
        resumed = await (await client.open_chat(session_ids["sleep"], {})).read_all()
        assert resumed[-1].event == "done"
        called = next(frame.data for frame in resumed if frame.event == "tool" and frame.data["status"] == "called")
        assert called["result"]["success"] is False
        note = await client.http.post(f"/api/v1/sessions/{session_ids['write']}/file", json={"file": "~/note.txt"})
        assert note.json()["data"]["content"] == "Written before the backup.\n"
        for session_id in session_ids.values():
            check_log((await client.get_session(session_id))["events"])
        done = await asyncio.to_thread(copy.run, "verify-audit")
        assert (done.returncode, "The audit log is intact." in done.stdout) == (0, True), done.stdout
        assert not done.stdout.startswith("0 records")


async def test_backup_during_writes_is_one_moment(make_place: MakePlace, tmp_path: Path) -> None:
    original, copy = make_place("original"), make_place("copy")
    file = tmp_path / "anker.backup"
    async with original.open_store() as store:
        for name in "abc":
            await store.sessions.create(name, owner="", at=1)

        commit = Commit(timestamp=1, events=[MessageEvent(role="assistant", content="x" * 500)] * 3)

        async def append(name: str) -> None:
            while True:
                await store.event_log.commit(name, commit)

        writers = [asyncio.create_task(append(name)) for name in "abc"]
        await eventually(lambda: _has_events(store, 30))
        await original.backup(file)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        for name in "abc":
            await store.event_log.commit(name, commit)  # a slow machine may have written nothing after the backup
        written = {name: await store.event_log.read(name, after=0, limit=10**6) for name in "abc"}

    await copy.restore(file)
    async with copy.open_store() as store:
        for name in "abc":
            saved = await store.event_log.read(name, after=0, limit=10**6)
            assert 30 <= len(saved) < len(written[name])
            assert len(saved) % 3 == 0
            assert saved == written[name][: len(saved)]
            event = MessageEvent(role="assistant", content="after")
            await store.event_log.commit(name, Commit(timestamp=1, events=[event]))
            after = await store.event_log.read(name, after=len(saved), limit=10)
            assert [record.number for record in after] == [len(saved) + 1]
            assert b"after" in after[0].data


async def _has_events(store: SqliteStore | MongoStore, count: int) -> bool:
    numbers = await store.sessions.last_event_numbers(["a", "b", "c"]) if isinstance(store, MongoStore) else {}
    if isinstance(store, SqliteStore):
        return all([len(await store.event_log.read(name, after=0, limit=count)) == count for name in "abc"])
    return len(numbers) == 3 and min(numbers.values()) >= count


async def test_restored_copy_is_another_installation_unless_it_replaces_the_original(
    make_place: MakePlace, tmp_path: Path
) -> None:
    original, copy, replacement = make_place("original"), make_place("copy"), make_place("replacement")
    file = tmp_path / "anker.backup"
    async with original.open_store() as store:
        installation, key = store.installation, store.signing_key
    assert installation == await original.backup(file)

    restored = await copy.restore(file)
    async with copy.open_store() as store:
        assert store.installation == restored != installation
        assert store.signing_key not in ("", key)
    await replacement.restore(file, replace=True)
    async with replacement.open_store() as store:
        assert (store.installation, store.signing_key) == (installation, key)


async def test_restore_over_data_is_refused(make_place: MakePlace, tmp_path: Path) -> None:
    original, used = make_place("original"), make_place("used")
    file = tmp_path / "anker.backup"
    async with original.open_store(), used.open_store() as store:
        installation = store.installation
        await original.backup(file)
    name = "MONGODB_DATABASE" if used.settings else "DATA_DIR"
    assert (await used.refusal(load, file)).startswith(f"{name}: ")
    async with used.open_store() as store:
        assert store.installation == installation


async def test_damaged_backup_is_refused_and_restores_nothing(make_place: MakePlace, tmp_path: Path) -> None:
    original, empty = make_place("original"), make_place("empty")
    file, damaged = tmp_path / "anker.backup", tmp_path / "damaged"
    async with original.open_store():
        await original.backup(file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda member: member.compress_size)
    middle = largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2
    for content in (
        whole[: len(whole) // 2],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        b"",
    ):
        damaged.write_bytes(content)
        assert "damaged" in await empty.refusal(load, damaged)
    await empty.restore(file)


async def test_backup_of_no_database_or_over_a_file_is_refused(make_sqlite_place: MakePlace, tmp_path: Path) -> None:
    place = make_sqlite_place("place")
    file = tmp_path / "anker.backup"
    assert (await place.refusal(save, file)).startswith("DATA_DIR: ")
    assert not file.exists()
    file.write_text("something else")
    assert (await place.refusal(save, file)) == f"{file}: exists already"
    assert file.read_text() == "something else"
    assert "cannot be read" in await place.refusal(load, tmp_path / "missing")


async def test_backup_without_room_leaves_no_file(make_sqlite_place: MakePlace, tmp_path: Path) -> None:
    place = make_sqlite_place("place")
    async with place.open_store():
        pass
    folder = tmp_path / "full"
    folder.mkdir()
    limited = ["bash", "-c", f'ulimit -f 8; exec "{sys.executable}" -m app backup "$0"', str(folder / "anker.backup")]
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(place.data_dir)}
    done = await asyncio.to_thread(
        subprocess.run, limited, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(folder.iterdir()) == []


async def test_backup_of_newer_schema_is_refused(make_sqlite_place: MakePlace, tmp_path: Path) -> None:
    place, empty = make_sqlite_place("place"), make_sqlite_place("empty")
    async with place.open_store():
        pass
    with contextlib.closing(sqlite3.connect(place.data_dir / "anker.db")) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    file = tmp_path / "anker.backup"
    await place.backup(file)
    reason = f"schema {len(MIGRATIONS) + 1}, this program knows up to {len(MIGRATIONS)}: use a newer program"
    assert await empty.refusal(load, file) == f"{file}: {reason}"
    with pytest.raises(StoreUnavailable, match="use a newer program"):
        async with place.open_store():
            pass


async def test_unfinished_restore_stops_the_start(mongod: Mongod, tmp_path: Path) -> None:
    place = Place(tmp_path, {"MONGODB_URL": mongod.url, "MONGODB_DATABASE": f"half_{secrets.token_hex(4)}"})
    async with place.open_store():
        pass
    file = tmp_path / "anker.backup"
    await place.backup(file)
    mongod.drop(place.settings["MONGODB_DATABASE"])
    # A collection whose documents cannot be stored, after others were.
    broken = tmp_path / "broken"
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(broken, "w") as archive:
        for member in whole.namelist():
            archive.writestr(member, whole.read(member))
        with pymongo.MongoClient(mongod.url) as client:
            client["other"]["x"].insert_many([{"_id": 1}])
            document = next(client["other"]["x"].find_raw_batches())
        archive.writestr("sessions_twice.bson", document * 2)
    assert (await place.refusal(load, broken)).startswith("MONGODB_URL: ")
    with pytest.raises(StoreUnavailable, match="MONGODB_DATABASE: the database has version of an unfinished restore"):
        async with place.open_store():
            pass
