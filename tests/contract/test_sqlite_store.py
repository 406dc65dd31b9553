"""SQLite store: crashes, a full disk, a second process, and files of other versions."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.application.services.audit import AuditTrail
from app.application.services.tickets import TicketService
from app.domain.errors import StoreUnavailable
from app.domain.models.event import MessageEvent, WaitEvent
from app.domain.models.message import AssistantMessage, SystemMessage, ToolCall, ToolMessage, Usage, UserMessage
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint
from app.domain.models.tool import OpenCall
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.domain.repositories.tickets import Ticket
from app.infrastructure.persistence.sqlite.database import MIGRATIONS
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event
from tests.contract.conftest import SqliteHarness

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "unit" / "golden"

APPENDER = """
import asyncio, sys
from pathlib import Path
from app.domain.models.event import MessageEvent
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event

async def main():
    async with SqliteStore(Path(sys.argv[1]), encode=encode_event, on_committed=lambda session, records: None) as store:
        await store.sessions.create("s", owner="me", at=1)
        async def append(n):
            while True:
                records = await store.event_log.commit(
                    "s", Commit(timestamp=1, events=[MessageEvent(role="user", content="x" * 500)] * 3)
                )
                print(records[-1].number, flush=True)
        await asyncio.gather(*(append(n) for n in range(3)))

asyncio.run(main())
"""


def large_commit(content: str = "x") -> Commit:
    return Commit(
        timestamp=1,
        events=(MessageEvent(role="assistant", content=content * 20_000),),
        checkpoint=Checkpoint(steps_started=9),
    )


async def limit_pages(store: SqliteHarness, maximum: int | None) -> None:
    """Limit the database to `maximum` pages, or to its present size for None, which is like a full disk."""

    def work(connection: sqlite3.Connection) -> None:
        count = connection.execute("PRAGMA page_count").fetchone()[0] if maximum is None else maximum
        connection.execute(f"PRAGMA max_page_count = {count}").fetchone()

    await store.store._database.run(work)


def load_golden(data_dir: Path) -> None:
    data_dir.mkdir()
    connection = sqlite3.connect(data_dir / "anker.db")
    connection.executescript((GOLDEN / "store_v1.sql").read_text())
    connection.close()


async def test_kill_of_the_process_loses_no_acknowledged_event(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(120)]
        os.kill(child.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
    store = SqliteHarness(tmp_path)
    await store.open()
    try:
        numbers = [record.number for record in await store.event_log.read("s", after=0, limit=10**6)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert max(acknowledged) <= len(numbers)
        session = await store.sessions.get("s", owner="me")
        assert session.last_event_number == len(numbers)
        assert await store.event_log.append_user_message("s", "on", at=1, key=None) == StoredMessage(
            number=len(numbers) + 1, is_new=True
        )
    finally:
        await store.close()


async def test_full_disk_is_reported_and_writes_nothing_until_there_is_room(
    sqlite: SqliteHarness,
) -> None:
    await sqlite.event_log.append_user_message("s", "before", at=1, key=None)
    await limit_pages(sqlite, None)
    failed = await asyncio.gather(
        *(sqlite.event_log.commit("s", large_commit()) for _ in range(5)),
        sqlite.event_log.append_user_message("s", "small", at=1, key="k"),
        return_exceptions=True,
    )
    assert all(isinstance(failure, StoreUnavailable) for failure in failed)
    assert str(failed[0]) == "the store does not work now: the disk is full"
    assert len({id(failure) for failure in failed}) == len(failed)
    assert [record.number for record in await sqlite.event_log.read("s", after=0, limit=9)] == [1]
    assert await sqlite.event_log.load_checkpoint("s") == Checkpoint(title="before")
    assert len(sqlite.committed) == 1
    await limit_pages(sqlite, 10**6)
    assert [record.number for record in await sqlite.event_log.commit("s", large_commit())] == [2]
    assert await sqlite.event_log.append_user_message("s", "small", at=1, key="k") == StoredMessage(
        number=3, is_new=True
    )
    assert (await sqlite.sessions.get("s", owner="me")).last_event_number == 3


async def test_check_reports_failed_writes_until_writing_works(sqlite: SqliteHarness) -> None:
    await sqlite.store._database.run(lambda connection: connection.execute("PRAGMA query_only = ON"))
    with pytest.raises(StoreUnavailable):
        await sqlite.event_log.commit("s", large_commit())
    assert await sqlite.sessions.check() == "the store does not work now: the database is read-only"
    await sqlite.store._database.run(lambda connection: connection.execute("PRAGMA query_only = OFF"))
    assert await sqlite.sessions.check() is None


async def test_second_process_on_the_same_directory_is_refused_with_one_line(
    sqlite: SqliteHarness, tmp_path: Path
) -> None:
    second = SqliteHarness(tmp_path / "data")
    with pytest.raises(StoreUnavailable, match=rf"^DATA_DIR: .* is in use by another process \({os.getpid()}\)$"):
        await second.open()
    await sqlite.close()
    await second.open()
    await second.close()
    await sqlite.open()


async def test_unusable_directory_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailable, match=r"^DATA_DIR: .* cannot be used: .*$"):
        await SqliteHarness(tmp_path / "file").open()


async def test_file_that_is_not_a_database_is_refused_and_the_lock_released(tmp_path: Path) -> None:
    (tmp_path / "anker.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StoreUnavailable, match="not a database of this service"):
        await SqliteHarness(tmp_path).open()
    (tmp_path / "anker.db").unlink()
    store = SqliteHarness(tmp_path)
    await store.open()
    await store.close()


async def test_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "anker.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreUnavailable, match="use a newer program"):
        await SqliteHarness(tmp_path).open()


async def test_file_of_version_1_is_migrated_and_can_be_written(tmp_path: Path) -> None:
    load_golden(tmp_path / "data")
    store = SqliteHarness(tmp_path / "data")
    await store.open()
    try:
        session = await store.sessions.get("golden", owner="me")
        assert (session.title, session.status, session.unread_count, session.last_event_number) == (
            "Golden",
            "waiting",
            1,
            4,
        )
        assert (await store.sessions.get("golden", owner="me")).usage == Usage(
            prompt_tokens=10, cached_tokens=4, completion_tokens=5, calls=2
        )
        assert await store.event_log.unread_messages("golden", after=0) == [UnreadMessage(number=1, content="Hello")]
        assert list(await store.event_log.load_transcript("golden", "planner")) == [
            SystemMessage(content="s"),
            UserMessage(content="Hello"),
        ]
        assert list(await store.event_log.load_transcript("golden", "executor")) == [
            AssistantMessage(
                content="c", tool_calls=(ToolCall(id="c1", name="shell_exec", arguments='{"id":"main"}'),)
            ),
            ToolMessage(tool_call_id="c1", content="done"),
        ]
        call = OpenCall(
            id="call_1",
            toolkit="shell",
            function="shell_exec",
            args={"id": "main", "exec_dir": "/home/ubuntu", "command": "printf 'a\\nb'"},
        )
        # The other fields of the stored checkpoint were renamed before the first release: they load as defaults.
        assert await store.event_log.load_checkpoint("golden") == Checkpoint(
            phase="waiting",
            plan=Plan(goal="greet", steps=(Step(id="1", description="Say hi", status="completed", result="said"),)),
            open_calls=(call,),
            title="Golden",
        )
        assert not (await store.event_log.append_user_message("golden", "Hello", at=1, key="k1")).is_new
        assert [
            r.number for r in await store.event_log.commit("golden", Commit(timestamp=1, events=(WaitEvent(),)))
        ] == [5]
        ticket = Ticket(session_id="golden", owner="me", view_only=True, expires_at=31.5)
        await store.tickets.put("digest", ticket, at=1.5)
        assert await store.tickets.redeem("digest", session_id="golden", at=2) == ticket
    finally:
        await store.close()


async def test_running_session_of_version_1_is_found_after_the_migration(tmp_path: Path) -> None:
    load_golden(tmp_path / "data")
    connection = sqlite3.connect(tmp_path / "data" / "anker.db")
    connection.execute("UPDATE sessions SET status = 'active'")
    connection.commit()
    connection.close()
    store = SqliteHarness(tmp_path / "data")
    await store.open()
    try:
        assert list(await store.sessions.list_active()) == ["golden"]
        assert (await store.sessions.get("golden", owner="me")).status == "running"
    finally:
        await store.close()


async def test_failed_migration_leaves_the_file_unchanged(tmp_path: Path) -> None:
    load_golden(tmp_path / "data")
    connection = sqlite3.connect(tmp_path / "data" / "anker.db")
    connection.execute("CREATE TABLE leaving (in_the_way INTEGER)")
    connection.commit()
    with pytest.raises(StoreUnavailable):
        await SqliteHarness(tmp_path / "data").open()
    assert connection.execute("PRAGMA user_version").fetchone()[0] == 1
    connection.execute("DROP TABLE leaving")
    connection.commit()
    connection.close()
    store = SqliteHarness(tmp_path / "data")
    await store.open()
    await store.sessions.delete("golden", owner="me")
    await store.close()


async def test_events_of_version_1_are_read_unchanged(sqlite: SqliteHarness) -> None:
    lines = (GOLDEN / "events_v1.jsonl").read_bytes().splitlines()
    raw = [(line.split(b'"', 4)[3].decode(), line[line.index(b'"data":') + 7 : -1]) for line in lines]
    rows = [(1 << 32 | number, kind, data) for number, (kind, data) in enumerate(raw, start=1)]
    insert = "INSERT INTO events (key, type, data) VALUES (?, ?, ?)"
    await sqlite.store._database.run(lambda connection: connection.executemany(insert, rows))
    records = await sqlite.event_log.read("s", after=0, limit=100)
    assert [(record.type, record.data) for record in records] == raw


def test_first_migration_is_unchanged() -> None:
    golden, fresh = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    golden.executescript((GOLDEN / "store_v1.sql").read_text())
    for statement in MIGRATIONS[0]:
        fresh.execute(statement)
    schema = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    assert golden.execute(schema).fetchall() == fresh.execute(schema).fetchall()


async def test_closed_store_refuses_writes_and_keeps_those_queued_before(tmp_path: Path) -> None:
    store = SqliteHarness(tmp_path)
    await store.open()
    await store.sessions.create("s", owner="me", at=1)
    queued = [
        asyncio.create_task(store.event_log.commit("s", Commit(timestamp=1, events=(WaitEvent(),)))) for _ in range(20)
    ]
    await asyncio.sleep(0)  # one iteration of the event loop queues the writes
    await store.close()
    assert [(await write)[0].number for write in queued] == list(range(1, 21))
    with pytest.raises(StoreUnavailable):
        await store.event_log.commit("s", Commit(timestamp=1))
    with pytest.raises(StoreUnavailable):
        await store.event_log.read("s", after=0, limit=1)
    assert await store.sessions.check() == "the store is closed"
    await store.open()
    assert len(await store.event_log.read("s", after=0, limit=100)) == 20
    await store.close()


async def row_counts(store: SqliteHarness) -> dict[str, int]:
    tables = ("sessions", "events", "transcripts", "checkpoints", "message_keys", "screenshots", "tickets", "deletions")
    counts = {}
    for table in tables:
        count = await store.store._reader.run(lambda c, t=table: c.execute(f"SELECT count(*) FROM {t}").fetchone()[0])
        counts[table] = count
    return counts


async def test_delete_of_a_long_session_leaves_no_rows_and_lets_others_write(sqlite: SqliteHarness) -> None:
    long = Commit(
        timestamp=1,
        events=[MessageEvent(role="assistant", content="x")] * 9000,
        messages=[("executor", UserMessage(content="x"))] * 5000,
        checkpoint=Checkpoint(steps_started=1),
    )
    await sqlite.event_log.commit("s", long)
    await sqlite.event_log.append_user_message("s", "u", at=1, key="k")
    await sqlite.screenshots.put("s", "p", b"jpeg")
    await sqlite.tickets.put("t", Ticket(session_id="s", owner="me", view_only=False, expires_at=2), at=1)
    await sqlite.sessions.create("other", owner="me", at=1)
    delete = asyncio.create_task(sqlite.sessions.delete("s", owner="me"))
    while (await row_counts(sqlite))["deletions"] == 0 and not delete.done():
        await asyncio.sleep(0)
    await sqlite.event_log.append_user_message("other", "meanwhile", at=1, key=None)
    assert not delete.done()
    await delete
    assert await row_counts(sqlite) == dict.fromkeys(await row_counts(sqlite), 0) | {"sessions": 1, "events": 1}


async def test_interrupted_delete_is_finished_at_the_next_start(sqlite: SqliteHarness) -> None:
    await sqlite.event_log.commit(
        "s", Commit(timestamp=1, events=[WaitEvent()] * 5000, checkpoint=Checkpoint(steps_started=1))
    )

    def cut_short(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM sessions")
        connection.execute("INSERT INTO deletions VALUES (1)")

    await sqlite.store._database.run(cut_short)
    await sqlite.close()
    await sqlite.open()
    assert set((await row_counts(sqlite)).values()) == {0}


async def test_exception_in_on_committed_does_not_affect_the_writer(tmp_path: Path) -> None:
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    store = SqliteHarness(tmp_path)
    await store.open()
    try:
        store.committed = None  # type: ignore[assignment]  # its `append` fails from now on
        await store.sessions.create("s", owner="me", at=1)
        for number in (1, 2):
            assert [record.number for record in await store.event_log.commit("s", large_commit())] == [number]
        assert len(faults) == 2
    finally:
        await store.close()


async def test_commit_that_cannot_be_encoded_fails_alone(sqlite: SqliteHarness) -> None:
    class Unencodable(MessageEvent):
        @property
        def content(self) -> str:  # type: ignore[override]
            raise ValueError("never")

    bad = object.__new__(Unencodable)
    object.__setattr__(bad, "role", "user")
    object.__setattr__(bad, "type", "message")
    results = await asyncio.gather(
        sqlite.event_log.commit("s", Commit(timestamp=1, events=(WaitEvent(),))),
        sqlite.event_log.commit("s", Commit(timestamp=1, events=(WaitEvent(), bad))),
        sqlite.event_log.commit("s", Commit(timestamp=1, events=(WaitEvent(),))),
        return_exceptions=True,
    )
    assert isinstance(results[1], ValueError)
    assert [record.number for record in await sqlite.event_log.read("s", after=0, limit=9)] == [1, 2]


async def test_expired_tickets_are_deleted_and_secrets_are_never_stored(
    sqlite: SqliteHarness,
) -> None:
    now = [100.0]
    audit = AuditTrail(sqlite.store.audit)
    service = TicketService(sessions=sqlite.sessions, tickets=sqlite.tickets, audit=audit, now=lambda: now[0])
    issued = [await service.issue("s", owner="me", view_only=False) for _ in range(50)]
    dump = await sqlite.store._reader.run(lambda c: "\n".join(str(row) for row in c.execute("SELECT * FROM tickets")))
    assert dump.count("\n") == 49
    assert not [each for each in issued if each.ticket in dump]
    now[0] += 30
    await service.issue("s", owner="me", view_only=False)
    assert (await row_counts(sqlite))["tickets"] == 1


def open_store(data_dir: Path) -> SqliteStore:
    return SqliteStore(data_dir, encode=encode_event, on_committed=lambda *_: None)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture(params=[0o000, 0o022], ids=["umask 0", "umask 022"])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
@pytest.mark.parametrize("exists", [False, True])
async def test_data_directory_is_private_whatever_the_umask(tmp_path: Path, exists: bool) -> None:
    data_dir = tmp_path / "data"
    files = ("anker.db", "anker.lock", "anker.db-wal", "anker.db-shm")
    if exists:
        (data_dir / "sandboxes").mkdir(parents=True)
        connection = sqlite3.connect(data_dir / "anker.db")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE notes (text)")  # leaves the write-ahead log, as a killed process does
        (data_dir / "anker.lock").touch()
        assert {mode(data_dir / name) & 0o044 for name in files} == {0o044}
    async with open_store(data_dir) as store:
        await store.sessions.create("s", owner="me", at=1)
        assert mode(data_dir) == 0o700
        assert {name: mode(data_dir / name) for name in files} == dict.fromkeys(files, 0o600)


async def test_directory_with_other_purposes_keeps_its_mode_with_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    tmp_path.chmod(0o755)
    async with open_store(tmp_path):
        assert mode(tmp_path) == 0o755
        assert mode(tmp_path / "anker.db") == 0o600
    assert "other users can enter DATA_DIR" in caplog.text
