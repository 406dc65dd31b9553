"""The audit log in every store: one chain, whoever writes, and any change of it is found."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pymongo
import pytest

from app.application.services.audit import AuditReport, read_all, verify
from app.domain.models.audit import GENESIS, AuditEntry, AuditRecord, Detail
from app.domain.repositories.audit import AuditLog
from tests.contract.conftest import Harness, MongoHarness, SqliteHarness

ROOT = Path(__file__).parents[2]

WRITER = """
import asyncio, sys
from pathlib import Path
from app.domain.models.audit import AuditEntry
from app.infrastructure.persistence.mongo.store import MongoStore
from app.infrastructure.persistence.sqlite.store import SqliteStore
from app.interfaces.wire import encode_event

async def main(kind, place, name, writers, count):
    options = dict(encode=encode_event, on_committed=lambda session, records: None)
    store = MongoStore(place, name, **options) if kind == "mongo" else SqliteStore(Path(place), **options)
    async with store:
        async def write(writer):
            for index in range(int(count)):
                entry = AuditEntry(at="2026-01-01T00:00:00.000Z", action="session.stop", outcome="accepted", actor="a",
                                   owner="a", session_id=f"s{writer}", details={"index": index})
                record = await store.audit.append(entry)
                print(record.number, record.hash, flush=True)
        await asyncio.gather(*(write(writer) for writer in range(int(writers))))

asyncio.run(main(*sys.argv[1:]))
"""


def entry(session_id: str = "s", **details: Detail) -> AuditEntry:
    return AuditEntry(
        at="2026-01-01T00:00:00.000Z",
        action="message.send",
        outcome="accepted",
        actor="ann",
        owner="ann",
        session_id=session_id,
        request_id="r1",
        client="192.0.2.7",
        details=details,
    )


async def check(audit_log: AuditLog, expected: Mapping[int, str] | None = None) -> AuditReport:
    return await verify(read_all(audit_log), expected=expected or {})


async def test_appended_records_form_a_chain_from_the_first_number_on(store: Harness) -> None:
    written = [await store.audit.append(entry(index=index)) for index in range(3)]
    assert [record.number for record in written] == [1, 2, 3]
    assert list(await store.audit.read(after=0, limit=10)) == written
    assert json.loads(written[0].data)["previous"] == GENESIS
    assert json.loads(written[2].data)["previous"] == written[1].hash == sha256(written[1].data).hexdigest()
    report = await check(store.audit)
    assert (report.count, report.bad_number, report.head) == (3, None, f"3:{written[2].hash}")


async def test_concurrent_appends_get_one_number_each(store: Harness) -> None:
    written = await asyncio.gather(*(store.audit.append(entry(index=index)) for index in range(300)))
    assert sorted(record.number for record in written) == list(range(1, 301))
    assert (await check(store.audit)).count == 300


async def test_records_of_a_session_are_read_without_those_of_others(store: Harness) -> None:
    for session_id in ("a", "", "b", "a"):
        await store.audit.append(entry(session_id))
    assert [record.number for record in await store.audit.read(after=0, limit=10, session_id="a")] == [1, 4]
    assert [record.number for record in await store.audit.read(after=1, limit=1)] == [2]


async def test_text_without_a_valid_encoding_is_stored_as_a_valid_record(store: Harness) -> None:
    await store.audit.append(entry(text="half \ud800 pair, \x00 \u2028 é"))
    report = await check(store.audit)
    assert (report.count, report.bad_number) == (1, None)


async def test_records_outlive_their_session(store: Harness) -> None:
    await store.audit.append(entry())
    await store.sessions.delete("s", owner="me")
    assert len(await store.audit.read(after=0, limit=10, session_id="s")) == 1


def _sealed_again(data: bytes, **fields: object) -> tuple[bytes, str]:
    changed = json.dumps(json.loads(data) | fields, sort_keys=True, separators=(",", ":")).encode()
    return changed, sha256(changed).hexdigest()


def _change(**fields: object) -> Callable[[sqlite3.Connection], None]:
    """Change a record and leave its hash."""

    def change(database: sqlite3.Connection) -> None:
        (data,) = database.execute("SELECT data FROM audit WHERE number = 3").fetchone()
        assert all(json.loads(data)[name] != value for name, value in fields.items())
        database.execute("UPDATE audit SET data = ? WHERE number = 3", (_sealed_again(data, **fields)[0],))

    return change


def _run(*statements: str) -> Callable[[sqlite3.Connection], None]:
    def run(database: sqlite3.Connection) -> None:
        for statement in statements:
            database.execute(statement)

    return run


def _seal_again(database: sqlite3.Connection) -> None:
    (data,) = database.execute("SELECT data FROM audit WHERE number = 3").fetchone()
    database.execute("UPDATE audit SET data = ?, hash = ? WHERE number = 3", _sealed_again(data, actor="eve"))


def _write_all_again(database: sqlite3.Connection) -> None:
    previous = ""
    rows = database.execute("SELECT number, data FROM audit WHERE number >= 3 ORDER BY number").fetchall()
    for number, data in rows:
        data, previous = _sealed_again(data, actor="eve", **({"previous": previous} if previous else {}))
        database.execute("UPDATE audit SET data = ?, hash = ? WHERE number = ?", (data, previous, number))


def _delete_and_close_the_gap(database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM audit WHERE number = 3")
    for number, data in database.execute("SELECT number, data FROM audit WHERE number > 3 ORDER BY number").fetchall():
        values = (number - 1, *_sealed_again(data, number=number - 1), number)
        database.execute("UPDATE audit SET number = ?, data = ?, hash = ? WHERE number = ?", values)


_COPY = "INSERT INTO audit SELECT {to}, session, data, hash FROM audit WHERE number = {number}"

TAMPERING: list[tuple[str, Callable[[sqlite3.Connection], None], int]] = [
    *(
        (f"{name} changed", _change(**{name: value}), 3)
        for name, value in {
            "number": 4,
            "at": "2026-01-02T00:00:00.000Z",
            "actor": "eve",
            "owner": "eve",
            "session_id": "other",
            "request_id": "r2",
            "client": "192.0.2.8",
            "action": "session.stop",
            "outcome": "failed",
            "details": {"index": 9},
            "previous": "0" * 64,
        }.items()
    ),
    ("hash changed", _run("UPDATE audit SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE number = 3"), 3),
    ("session column changed", _run("UPDATE audit SET session = 'x' WHERE number = 3"), 3),
    ("content no JSON", _run("UPDATE audit SET data = x'7b' WHERE number = 3"), 3),
    ("changed and sealed again", _seal_again, 4),
    ("first deleted", _run("DELETE FROM audit WHERE number = 1"), 1),
    ("middle deleted", _run("DELETE FROM audit WHERE number = 3"), 3),
    ("deleted and numbered again", _delete_and_close_the_gap, 3),
    ("swapped", _run(*(f"UPDATE audit SET number = {new} WHERE number = {old}" for old, new in
        ((3, 99), (4, 3), (99, 4)))), 3),
    ("copy inserted at the end", _run(_COPY.format(number=2, to=7)), 7),
    ("copy inserted before the first", _run(_COPY.format(number=2, to=0)), 0),
    ("last cut off", _run("DELETE FROM audit WHERE number = 6"), 6),
    ("all cut off", _run("DELETE FROM audit"), 1),
    ("written again from the middle", _write_all_again, 6),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "bad_number"), [pytest.param(*case, id=name) for name, *case in TAMPERING])
async def test_tampering_is_found_at_its_first_record(
    sqlite: SqliteHarness, tamper: Callable[[sqlite3.Connection], None], bad_number: int
) -> None:
    written = [await sqlite.audit.append(entry(index=index)) for index in range(6)]
    with closing(sqlite3.connect(sqlite._data_dir / "anker.db")) as database:
        for trigger in ("audit_next", "audit_kept", "audit_unchanged"):
            database.execute(f"DROP TRIGGER {trigger}")
        tamper(database)
        database.commit()
    # The service logged the hash of the last record.
    report = await check(sqlite.audit, {6: written[5].hash})
    assert (report.bad_number, bool(report.problem)) == (bad_number, True)


async def test_cut_off_or_rewritten_log_without_a_logged_head_looks_intact(sqlite: SqliteHarness) -> None:
    """This is the limit of a hash chain; docs/operations.md says so."""
    for index in range(6):
        await sqlite.audit.append(entry(index=index))
    with closing(sqlite3.connect(sqlite._data_dir / "anker.db")) as database:
        for trigger in ("audit_kept", "audit_unchanged"):
            database.execute(f"DROP TRIGGER {trigger}")
        _write_all_again(database)
        database.execute("DELETE FROM audit WHERE number = 6")
        database.commit()
    assert (await check(sqlite.audit)).bad_number is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET session = 'x'",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit VALUES (1, '', x'7b7d', '')",
        "REPLACE INTO audit VALUES (2, '', x'7b7d', '')",
        "INSERT INTO audit VALUES (9, '', x'7b7d', '')",
        "INSERT INTO audit (session, data, hash) VALUES ('', x'7b7d', '')",
    ],
)
async def test_statement_other_than_the_next_insert_is_refused_by_sqlite(sqlite: SqliteHarness, statement: str) -> None:
    await sqlite.audit.append(entry())
    await sqlite.audit.append(entry())
    with closing(sqlite3.connect(sqlite._data_dir / "anker.db")) as database:
        with pytest.raises(sqlite3.IntegrityError, match="audit log"):
            database.execute(statement)
    assert (await check(sqlite.audit)).count == 2


async def test_tampering_in_mongodb_is_found(mongo: MongoHarness) -> None:
    for index in range(6):
        await mongo.audit.append(entry(index=index))
    with pymongo.MongoClient(mongo.mongod.url) as client:
        audit = client[mongo.database]["audit"]
        audit.update_one({"_id": 5}, {"$set": {"session": "x"}})
        assert (await check(mongo.audit)).bad_number == 5
        audit.delete_one({"_id": 2})
    assert (await check(mongo.audit)).bad_number == 2


async def _start_writer(*arguments: object) -> asyncio.subprocess.Process:
    command = (sys.executable, "-c", WRITER, *map(str, arguments))
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)


async def test_writers_in_two_processes_make_one_chain(mongo: MongoHarness) -> None:
    arguments = ("mongo", mongo.mongod.url, mongo.database, 4, 40)
    processes = [await _start_writer(*arguments) for _ in range(2)]
    own = [await mongo.audit.append(entry(index=index)) for index in range(40)]
    outputs = [(await process.communicate())[0].decode().split() for process in processes]
    numbers = [record.number for record in own] + [int(word) for output in outputs for word in output[::2]]
    assert sorted(numbers) == list(range(1, 361))
    report = await check(mongo.audit)
    assert (report.count, report.bad_number) == (360, None)


@pytest.mark.parametrize("kind", ["mongo", "sqlite"])
async def test_killed_writer_leaves_an_intact_chain_with_every_acknowledged_record(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    harness: MongoHarness | SqliteHarness
    if kind == "mongo":
        harness = MongoHarness(request.getfixturevalue("mongod"))
        arguments: tuple[object, ...] = ("mongo", harness.mongod.url, harness.database, 8, 100_000)
    else:
        harness = SqliteHarness(tmp_path / "data")
        arguments = ("sqlite", tmp_path / "data", "-", 8, 100_000)
    process = await _start_writer(*arguments)
    assert process.stdout is not None
    acknowledged = [(await process.stdout.readline()).decode().split() for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [line.decode().split() for line in (await process.stdout.read()).splitlines(keepends=True)[:-1]]
    await process.wait()
    await harness.open()
    try:
        records: list[AuditRecord] = [record async for record in read_all(harness.audit)]
        assert {(record.number, record.hash) for record in records} >= {(int(n), h) for n, h in acknowledged}
        await harness.audit.append(entry())
        report = await check(harness.audit)
        assert (report.count, report.bad_number) == (len(records) + 1, None)
    finally:
        await harness.close()
        if isinstance(harness, MongoHarness):
            harness.mongod.drop(harness.database)
