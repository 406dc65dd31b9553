"""MongoDB store: concurrent processes, killed processes, and a server that becomes unavailable."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pymongo
import pytest

from app.domain.errors import Conflict, NotFound, StoreUnavailable, TooLarge
from app.domain.models.event import MessageEvent, TitleEvent, WaitEvent
from app.domain.models.message import Usage, UserMessage
from app.domain.models.run import Checkpoint
from app.domain.repositories.event_log import Commit, StoredMessage
from app.infrastructure.persistence.mongo.client import ClientName
from app.infrastructure.persistence.mongo.schema import VERSION
from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event
from tests.contract.conftest import CLIENTS, MongoHarness
from tests.support.eventually import eventually
from tests.support.stores import Mongod, free_port, require_mongod

ROOT = Path(__file__).parents[2]

APPENDER = """
import asyncio, sys
from app.domain.models.event import MessageEvent
from app.domain.repositories.event_log import Commit
from app.infrastructure.persistence.mongo.store import MongoStore
from app.interfaces.wire import encode_event

async def main():
    url, database, client = sys.argv[1:]
    on_committed = lambda session, records: None
    async with MongoStore(url, database, encode=encode_event, on_committed=on_committed, client=client) as store:
        async def append(n):
            while True:
                records = await store.event_log.commit(
                    "s", Commit(timestamp=1, events=[MessageEvent(role="user", content="x" * 500)] * 3)
                )
                print(records[-1].number, flush=True)
        await asyncio.gather(*(append(n) for n in range(3)))

asyncio.run(main())
"""


def says(content: str) -> MessageEvent:
    return MessageEvent(role="assistant", content=content)


async def event_numbers(store: MongoHarness, session_id: str = "s") -> list[int]:
    return [record.number for record in await store.event_log.read(session_id, after=0, limit=10**6)]


@asynccontextmanager
async def second_process(first: MongoHarness) -> AsyncIterator[MongoHarness]:
    """Open a second store on the same database, as another process would."""
    second = MongoHarness(first.mongod, first.client, first.database)
    await second.open()
    try:
        yield second
    finally:
        await second.close()


@asynccontextmanager
async def raw_database(store: MongoHarness) -> AsyncIterator["pymongo.AsyncMongoClient"]:
    async with pymongo.AsyncMongoClient(store.mongod.url) as client:
        yield client[store.database]


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[Mongod]:
    """Start a server that the test may kill."""
    require_mongod()
    server = Mongod(tmp_path / "mongod")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
async def own_server(request: pytest.FixtureRequest, own_mongod: Mongod) -> AsyncIterator[MongoHarness]:
    """Open a store with a session "s" on a server of its own. A test may choose the client as parameter."""
    harness = MongoHarness(own_mongod, getattr(request, "param", "motor"))
    await harness.open()
    await harness.sessions.create("s", owner="me", at=1)
    try:
        yield harness
    finally:
        await harness.close()


async def test_two_processes_write_without_gaps_and_duplicates(mongo: MongoHarness) -> None:
    async with second_process(mongo) as other:

        async def write(store: MongoHarness, name: str, count: int) -> None:
            for n in range(count):
                await store.event_log.commit("s", Commit(timestamp=1, events=[says(f"{name}{n}"), WaitEvent()]))

        writers = [write(store, f"{name}{n}-", 20) for store, name in ((mongo, "a"), (other, "b")) for n in range(3)]
        seen = asyncio.create_task(read_repeatedly(other))
        await asyncio.gather(*writers)
        assert await event_numbers(mongo) == list(range(1, 241)) == await event_numbers(other)
        records = await mongo.event_log.read("s", after=0, limit=1000)
        assert len({record.data for record in records}) == 240
        announced = [record for store in (mongo, other) for _, batch in store.committed for record in batch]
        assert sorted(announced) == list(records)
        for store in (mongo, other):
            own = [record.number for _, batch in store.committed for record in batch]
            assert own == sorted(own)
        seen.cancel()
        await asyncio.gather(seen, return_exceptions=True)
        assert seen.cancelled()
        assert (await mongo.sessions.get("s", owner="me")).unread_count == 120


async def read_repeatedly(store: MongoHarness) -> None:
    """Read while others write, and assert that events have no gaps and never disappear."""
    length = 0
    while True:
        found = await event_numbers(store)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= length
        assert (await store.sessions.last_event_numbers(["s"]))["s"] >= len(found)
        length = len(found)


async def test_same_key_from_two_processes_stores_one_message(mongo: MongoHarness) -> None:
    async with second_process(mongo) as other:
        for n in range(20):
            calls = (
                store.event_log.append_user_message("s", "once", at=1, key=f"k{n}")
                for store in (mongo, other)
                for _ in range(3)
            )
            results = await asyncio.gather(*calls)
            assert {result.number for result in results} == {n + 1}
            assert sum(result.is_new for result in results) == 1
        assert await event_numbers(mongo) == list(range(1, 21))


async def test_thousand_concurrent_messages_with_paired_keys_store_five_hundred(mongo: MongoHarness) -> None:
    async with second_process(mongo) as other:
        calls = (
            (mongo, other)[n % 2].event_log.append_user_message("s", str(n // 2), at=1, key=str(n // 2))
            for n in range(1000)
        )
        results = await asyncio.gather(*calls)
        assert sum(result.is_new for result in results) == 500
        assert await event_numbers(mongo) == list(range(1, 501))
        messages = await other.event_log.unread_messages("s", after=0)
        assert sorted(int(message.content) for message in messages) == list(range(500))


async def test_many_sessions_are_written_concurrently(mongo: MongoHarness) -> None:
    for n in range(30):
        await mongo.sessions.create(f"x{n}", owner="me", at=1)
    await asyncio.gather(
        *(mongo.event_log.append_user_message(f"x{n}", str(k), at=1, key=None) for n in range(30) for k in range(10)),
    )
    assert set((await mongo.sessions.last_event_numbers([f"x{n}" for n in range(30)])).values()) == {10}


async def test_kill_of_a_writing_process_loses_nothing_acknowledged_and_blocks_nobody(mongo: MongoHarness) -> None:
    command = [sys.executable, "-c", APPENDER, mongo.mongod.url, mongo.database, mongo.client]
    for _ in range(3):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            out = child.stdout
            acknowledged = [int(await asyncio.to_thread(out.readline)) for _ in range(50)]
            os.kill(child.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in out if line.endswith("\n")]
        began = time.monotonic()
        result = await mongo.event_log.append_user_message("s", "on", at=1, key=None)
        assert await mongo.leases.take_over("s", holder="a", seconds=0) is None
        assert time.monotonic() - began < 5, "the dead process blocks the session"
        found = await event_numbers(mongo)
        assert found == list(range(1, len(found) + 1))
        # A write of the dead process that was not acknowledged is stored before this message or never.
        assert max(acknowledged) < result.number == len(found)
        assert (await mongo.sessions.get("s", owner="me")).last_event_number == len(found)


async def test_tail_left_by_a_dead_process_is_read_and_copied_by_the_next_writer(
    mongo: MongoHarness,
) -> None:
    commit = Commit(
        timestamp=1, events=[says("1"), TitleEvent(title="t")], messages=[("executor", UserMessage(content="w"))]
    )
    await mongo.event_log.commit("s", commit)
    await mongo.event_log.append_user_message("s", "u", at=1, key="k")
    await mongo.close()
    async with raw_database(mongo) as database:
        newest = await database.sessions.find_one({"_id": "s"})
        for name, collection in (("events", "events"), ("keys", "message_keys")):
            rows = newest["tail"][name]
            assert (
                await database[collection].delete_many({"_id": {"$in": [row["_id"] for row in rows]}})
            ).deleted_count == 1
        await mongo.open()
        assert await event_numbers(mongo) == [1, 2, 3]
        assert [record.number for record in await mongo.event_log.read("s", after=1, limit=1)] == [2]
        assert [record.number for record in await mongo.event_log.read("s", after=2, limit=1)] == [3]
        assert [message.number for message in await mongo.event_log.unread_messages("s", after=0)] == [3]
        assert await mongo.event_log.append_user_message("s", "u", at=1, key="k") == StoredMessage(
            number=3, is_new=False
        )
        await mongo.event_log.commit("s", Commit(timestamp=1, events=[says("4")]))
        assert await event_numbers(mongo) == [1, 2, 3, 4]
        assert await mongo.event_log.append_user_message("s", "u", at=1, key="k") == StoredMessage(
            number=3, is_new=False
        )
        assert len(await mongo.event_log.load_transcript("s", "executor")) == 1


async def test_delete_while_another_process_writes_leaves_no_rows(mongo: MongoHarness) -> None:
    async with second_process(mongo) as other, raw_database(mongo) as database:
        stored = asyncio.Event()

        async def write() -> None:
            while True:
                await other.event_log.commit("s", Commit(timestamp=1, events=[says("x")] * 5))
                stored.set()

        writing = asyncio.create_task(write())
        await stored.wait()
        await mongo.sessions.delete("s", owner="me")
        with pytest.raises(NotFound):
            await writing
        with pytest.raises(NotFound):
            await other.event_log.read("s", after=0, limit=1)
        await mongo.sessions.create("s", owner="me", at=1)
        assert await other.event_log.append_user_message("s", "u", at=1, key=None) == StoredMessage(
            number=1, is_new=True
        )
        assert await event_numbers(mongo) == [1]
        deletion = await database.deletions.find_one()
        assert deletion is not None
        await mongo.store._deleter.delete_rows(deletion["_id"])  # as a later round does
        assert await database.events.count_documents({}) == 1


async def test_delete_of_a_long_session_leaves_no_rows_and_lets_others_write(mongo: MongoHarness) -> None:
    long = Commit(
        timestamp=1,
        events=[says("x")] * 9000,
        messages=[("executor", UserMessage(content="x"))] * 5000,
        checkpoint=Checkpoint(steps_started=1),
    )
    await mongo.event_log.commit("s", long)
    await mongo.event_log.append_user_message("s", "u", at=1, key="k")
    await mongo.screenshots.put("s", "p", b"jpeg" * 10**6)
    await mongo.sessions.create("other", owner="me", at=1)
    delete = asyncio.create_task(mongo.sessions.delete("s", owner="me"))
    await mongo.event_log.append_user_message("other", "meanwhile", at=1, key=None)
    await delete
    async with raw_database(mongo) as database:
        left = {
            name: await database[name].count_documents({})
            for name in ("events", "transcripts", "message_keys", "screenshots")
        }
    assert left == {"events": 1, "transcripts": 0, "message_keys": 0, "screenshots": 0}


async def test_interrupted_delete_is_finished_at_the_next_start(mongo: MongoHarness) -> None:
    await mongo.event_log.commit(
        "s", Commit(timestamp=1, events=[WaitEvent()] * 5000, checkpoint=Checkpoint(steps_started=1))
    )
    await mongo.close()
    async with raw_database(mongo) as database:
        session = await database.sessions.find_one({"_id": "s"})
        old = session["ordinal"]
        await database.deletions.update_one(
            {"_id": old}, [{"$set": {"at": {"$subtract": ["$$NOW", 60_000]}}}], upsert=True
        )
        await mongo.open()

        async def is_clear() -> bool:
            left = [await database[name].count_documents({}) for name in ("sessions", "events", "deletions")]
            return not any(left)

        await eventually(is_clear)


async def test_commit_too_large_for_a_document_is_refused_alone(mongo: MongoHarness) -> None:
    small = Commit(timestamp=1, events=[says("small")])
    huge = Commit(timestamp=1, events=[says("x" * 5 * 2**20)] * 3)
    results = await asyncio.gather(
        *(mongo.event_log.commit("s", commit) for commit in (small, huge, small)), return_exceptions=True
    )
    assert isinstance(results[1], TooLarge)
    assert await event_numbers(mongo) == [1, 2]
    large = Commit(timestamp=1, events=[says("x" * 5 * 2**20)] * 2)
    await asyncio.gather(*(mongo.event_log.commit("s", commit) for commit in (large, small, large)))
    assert await event_numbers(mongo) == list(range(1, 8))


async def test_closed_store_refuses_writes_and_keeps_those_queued_before(mongo: MongoHarness) -> None:
    queued = [
        asyncio.create_task(mongo.event_log.commit("s", Commit(timestamp=1, events=[WaitEvent()]))) for _ in range(20)
    ]
    await asyncio.sleep(0)  # one iteration of the event loop queues the writes
    await mongo.close()
    assert [(await write)[0].number for write in queued] == list(range(1, 21))
    with pytest.raises(StoreUnavailable):
        await mongo.event_log.commit("s", Commit(timestamp=1))
    with pytest.raises(StoreUnavailable):
        await mongo.event_log.read("s", after=0, limit=1)
    assert await mongo.sessions.check() == "the store is closed"
    await mongo.open()
    assert await event_numbers(mongo) == list(range(1, 21))


async def test_names_may_have_any_characters(mongo: MongoHarness) -> None:
    odd = ("$where", "a.b", "nul\x00", "\ud800", "ü", "")
    for name in odd:
        with pytest.raises(NotFound):
            await mongo.sessions.get(name, owner="me")
    for name in odd:
        await mongo.sessions.create(name, owner=name, at=1)
        assert (await mongo.event_log.append_user_message(name, name, at=1, key=name)).is_new
        assert not (await mongo.event_log.append_user_message(name, name, at=1, key=name)).is_new
        await mongo.screenshots.put(name, name, b"x")
        assert await mongo.screenshots.get(name, name) == b"x"
        assert len((await mongo.sessions.page(owner=name, limit=9, cursor=None)).sessions) == 1


async def test_ten_processes_that_start_together_agree_on_a_new_database(mongod: Mongod) -> None:
    database = f"test_{secrets.token_hex(6)}"
    stores = [MongoHarness(mongod, client, database) for client in CLIENTS for _ in range(5)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        assert len({store.store.installation for store in stores}) == 1
        results = await asyncio.gather(
            *(store.sessions.create("s", owner="me", at=1) for store in stores), return_exceptions=True
        )
        assert [type(result) for result in results if result is not None] == [Conflict] * 9
    finally:
        await asyncio.gather(*(store.close() for store in stores))
        await asyncio.to_thread(mongod.drop, database)


async def test_session_of_an_earlier_program_is_read_and_written(mongo: MongoHarness) -> None:
    async with raw_database(mongo) as database:
        await database.sessions.update_one({"_id": "s"}, {"$unset": {"model": 1, "reasoning_tokens": 1}})
    session = await mongo.sessions.get("s", owner="me")
    assert (session.model, session.usage) == ("", Usage())
    assert await mongo.event_log.load_checkpoint("s") == Checkpoint()
    await mongo.event_log.commit("s", Commit(timestamp=1, usage=Usage(calls=1, reasoning_tokens=2, cost=0.5)))
    assert (await mongo.sessions.get("s", owner="me")).usage == Usage(calls=1, reasoning_tokens=2, cost=0.5)


async def test_running_sessions_of_version_2_are_found_after_the_migration(mongo: MongoHarness) -> None:
    await mongo.event_log.append_user_message("s", "u", at=1, key=None)
    await mongo.close()
    async with raw_database(mongo) as database:
        await database.sessions.update_one({"_id": "s"}, {"$set": {"status": "active"}})
        await database.sessions.create_index("status", name="active")
        await database.metadata.update_one({"_id": "version"}, {"$set": {"value": 2}})
        await mongo.open()
        assert list(await mongo.sessions.list_active()) == ["s"]
        assert "active" not in await database.sessions.index_information()
        assert (await database.metadata.find_one({"_id": "version"}))["value"] == VERSION


async def test_database_of_another_version_is_refused(mongo: MongoHarness) -> None:
    await mongo.close()
    async with raw_database(mongo) as database:
        await database.metadata.update_one({"_id": "version"}, {"$set": {"value": VERSION + 1}})
        with pytest.raises(StoreUnavailable, match="use a newer program"):
            await mongo.open()
        await database.metadata.update_one({"_id": "version"}, {"$set": {"value": VERSION}})
    await mongo.open()


def store_at(url: str, client: ClientName = "motor", database: str = "anker") -> MongoStore:
    return MongoStore(url, database, encode=encode_event, on_committed=lambda session, records: None, client=client)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("url", ["", "http://secret@host", "mongodb://", "mongodb://u:secret@h:port/"])
async def test_invalid_mongodb_url_fails_start_with_one_line_without_secrets(url: str, client: ClientName) -> None:
    with pytest.raises(StoreUnavailable, match=r"^MONGODB_URL: .*$") as caught:
        await store_at(url, client).open()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
async def test_invalid_database_name_fails_start_with_one_line(client: ClientName) -> None:
    with pytest.raises(StoreUnavailable, match=r"^MONGODB_DATABASE: .*$"):
        await store_at("mongodb://127.0.0.1:1/", client, "a b.c").open()


async def test_unreachable_server_fails_start_within_seconds_without_its_address() -> None:
    port = free_port()
    async with asyncio.timeout(15):
        with pytest.raises(StoreUnavailable, match=r"^MONGODB_URL: .*$") as caught:
            await store_at(f"mongodb://peter:secret@127.0.0.1:{port}/").open()
    assert not any(part in str(caught.value) for part in (str(port), "127", "peter", "secret"))


async def test_server_without_replica_set_fails_start_with_instructions(tmp_path: Path) -> None:
    require_mongod()
    server = Mongod(tmp_path, replica_set=False)
    await asyncio.to_thread(server.start)
    try:
        with pytest.raises(StoreUnavailable, match=r"^MONGODB_URL: .*--replSet.*rs\.initiate\(\).*$"):
            await store_at(server.url).open()
    finally:
        server.kill()


async def test_lease_that_expired_during_an_outage_can_be_renewed_before_others_acquire_it(
    mongo: MongoHarness,
) -> None:
    await mongo.event_log.append_user_message("s", "go", at=1, key=None)
    lease = await mongo.leases.acquire("s", holder="a", seconds=0)
    assert lease is not None
    async with second_process(mongo) as other:
        assert [each.session_id for each in await other.leases.list_claimable(limit=1)] == ["s"]
        other.store._availability.mark_lost()
        assert await other.sessions.check() is not None
        await eventually(lambda: is_available(other))
        assert await other.leases.list_claimable(limit=1) == []
        assert await other.leases.acquire("s", holder="b", seconds=60) is None
        assert [kept.token for kept in await mongo.leases.renew(holder="a", seconds=0)] == [lease.token]
        # A holder that does not renew for some seconds is dead. A released lease is free at once.
        await mongo.sessions.create("free", owner="me", at=1)
        assert await other.leases.acquire("free", holder="b", seconds=60) is not None
        await eventually(lambda: other.leases.acquire("s", holder="b", seconds=60))


async def wait_until_unavailable(store: MongoHarness) -> None:
    """Wait until the store reports that it is unavailable: two seconds, and some more on a loaded machine."""
    await eventually(store.sessions.check, seconds=4)


async def is_available(store: MongoHarness) -> bool:
    return await store.sessions.check() is None


async def assert_refused_at_once(store: MongoHarness) -> None:
    began = time.monotonic()
    calls = (
        store.event_log.append_user_message("s", "x", at=1, key=None),
        store.event_log.read("s", after=0, limit=1),
        store.sessions.page(owner="me", limit=1, cursor=None),
        store.sessions.create("t", owner="me", at=1),
        store.leases.renew(holder="a", seconds=1),
        store.screenshots.put("s", "p", b""),
    )
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            await call
        assert caught.value.retry_after == 2
        assert "127.0.0.1" not in str(caught.value)
        assert str(store.mongod.port) not in str(caught.value)
    assert time.monotonic() - began < 2, "a call waited for a server"


@pytest.mark.parametrize("own_server", CLIENTS, indirect=True)
async def test_killed_server_is_unavailable_at_once_and_recovers(own_server: MongoHarness) -> None:
    for round_number in range(2):
        assert (
            await own_server.event_log.append_user_message("s", "before", at=1, key=str(round_number))
        ).number == 2 * round_number + 1
        await asyncio.to_thread(own_server.mongod.kill)
        await wait_until_unavailable(own_server)
        await assert_refused_at_once(own_server)
        await asyncio.to_thread(own_server.mongod.start)
        await eventually(lambda: is_available(own_server))
        assert (
            await own_server.event_log.append_user_message("s", "after", at=1, key=None)
        ).number == 2 * round_number + 2
        assert not (await own_server.event_log.append_user_message("s", "before", at=1, key=str(round_number))).is_new
    assert await event_numbers(own_server) == [1, 2, 3, 4]


async def test_hanging_server_is_unavailable_and_writes_in_flight_stay_whole(
    own_server: MongoHarness,
) -> None:
    stored: list[int] = []

    async def write(n: int) -> None:
        while True:
            try:
                stored.append((await own_server.event_log.append_user_message("s", "x", at=1, key=None)).number)
            except StoreUnavailable:
                return

    reads = asyncio.create_task(read_repeatedly(own_server))
    writers = [asyncio.create_task(write(n)) for n in range(5)]
    await eventually(lambda: stored)
    own_server.mongod.pause()
    try:
        began = time.monotonic()
        await wait_until_unavailable(own_server)
        await assert_refused_at_once(own_server)
        with pytest.raises(StoreUnavailable):
            await reads
        await asyncio.gather(*writers)
        assert time.monotonic() - began < 10
    finally:
        own_server.mongod.resume()
    await eventually(lambda: is_available(own_server))
    last = await own_server.event_log.append_user_message("s", "on", at=1, key=None)
    found = await event_numbers(own_server)
    assert found == list(range(1, last.number + 1))
    assert set(stored) <= set(found)


async def test_restarted_server_is_unavailable_only_during_the_restart(own_server: MongoHarness) -> None:
    restarted = asyncio.Event()
    refused: list[StoreUnavailable] = []

    async def write() -> int:
        last = 0
        while not restarted.is_set() or not last:
            try:
                last = (await own_server.event_log.append_user_message("s", "x", at=1, key=None)).number
            except StoreUnavailable as error:
                refused.append(error)
                await asyncio.sleep(0.01)
        return (await own_server.event_log.append_user_message("s", "x", at=1, key=None)).number

    writing = asyncio.create_task(write())
    await asyncio.to_thread(own_server.mongod.stop)
    await eventually(lambda: refused)
    await asyncio.to_thread(own_server.mongod.start)
    await eventually(lambda: is_available(own_server))
    restarted.set()
    last = await writing
    assert await event_numbers(own_server) == list(range(1, last + 1))


async def test_writes_continue_after_the_primary_steps_down(own_server: MongoHarness) -> None:
    assert (await own_server.event_log.append_user_message("s", "x", at=1, key=None)).number == 1
    async with pymongo.AsyncMongoClient(own_server.mongod.url) as client:
        await client.admin.command({"replSetStepDown": 2, "force": True})
    number = 0
    async with asyncio.timeout(30):
        while not number:
            try:
                number = (await own_server.event_log.append_user_message("s", "y", at=1, key="k")).number
            except StoreUnavailable:
                await asyncio.sleep(0.02)
    assert number == 2
    assert await event_numbers(own_server) == [1, 2]
