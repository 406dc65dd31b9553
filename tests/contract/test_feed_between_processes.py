"""Feeds of several processes with a common Redis: what one process publishes reaches the readers of the others."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.domain.models.event import StatusDelta
from app.infrastructure.streams import polling
from app.infrastructure.streams.redis.feed import MAX_RECORDS_BYTES
from tests.support.eventually import eventually
from tests.support.feeds import FeedProcess, Store, feed_processes
from tests.support.redis_server import RedisServer


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def processes(store: Store, server: RedisServer) -> AsyncIterator[list[FeedProcess]]:
    async with feed_processes(3, store, server) as opened:
        yield opened


async def test_records_reach_other_processes_without_reading_the_store(
    store: Store, processes: list[FeedProcess]
) -> None:
    writer, second, third = processes
    readers = [await second.follow(), await third.follow(), await writer.follow()]
    writer.publish(store.add())
    await eventually(lambda: all(reader.numbers == [1] for reader in readers))
    store.polls_fail = True
    reads = store.reads
    for number in range(2, 200):
        writer.publish(store.add())
        if number % 7 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: all(reader.numbers == list(range(1, 200)) for reader in readers))
    assert store.reads == reads


async def test_status_reaches_readers_of_all_processes(store: Store, processes: list[FeedProcess]) -> None:
    writer, second, _ = processes
    readers = [await second.follow(), await writer.follow()]
    status = StatusDelta("The model's server limits requests", 12.5)
    writer.feed.publish_status("s", status)
    await eventually(lambda: all(reader.statuses == [status] for reader in readers))


async def test_records_too_large_to_send_are_read_from_the_store(store: Store, processes: list[FeedProcess]) -> None:
    writer, second, _ = processes
    reader = await second.follow()
    store.polls_fail = True
    writer.publish(store.add(size=MAX_RECORDS_BYTES + 1))
    await eventually(lambda: reader.numbers == [1])
    writer.publish(store.add())
    await eventually(lambda: reader.numbers == [1, 2])


async def test_records_of_two_writers_out_of_order_arrive_in_order_and_once(
    store: Store, processes: list[FeedProcess]
) -> None:
    writer, second, other_writer = processes
    reader = await second.follow()
    writer.publish(*(store.add() for _ in range(6)))
    await eventually(lambda: reader.numbers == [1, 2, 3, 4, 5, 6])
    seventh, eighth = store.add(), store.add()
    other_writer.publish(eighth)
    await eventually(lambda: reader.numbers == list(range(1, 9)))
    writer.publish(seventh)
    writer.publish(eighth)
    other_writer.publish(store.add())
    await eventually(lambda: reader.numbers[-1] == 9)
    assert reader.numbers == list(range(1, 10))


async def test_all_processes_can_write_and_read_the_same_session(store: Store, processes: list[FeedProcess]) -> None:
    readers = [await process.follow() for process in processes]
    for number in range(60):
        processes[number % 3].publish(store.add())
        await asyncio.sleep(0)
    await eventually(lambda: all(len(reader.numbers) == 60 for reader in readers))
    assert all(reader.numbers == list(range(1, 61)) for reader in readers)


async def test_records_published_while_a_subscription_begins_are_not_missed(
    store: Store, processes: list[FeedProcess]
) -> None:
    writer, second, _ = processes
    following = asyncio.create_task(second.follow())
    while not following.done():
        writer.publish(store.add())
        await asyncio.sleep(0)
    reader = await following
    store.polls_fail = True
    await eventually(lambda: len(reader.numbers) == len(store.events["s"]))
    assert reader.numbers == list(range(1, len(reader.numbers) + 1))


async def test_process_is_subscribed_only_while_a_session_has_readers(
    store: Store, server: RedisServer, processes: list[FeedProcess]
) -> None:
    writer, second, _ = processes
    await second.follow()
    assert await server.execute("PUBSUB", "CHANNELS") == [b"test:session:s"]
    await second.stop_readers()
    async with asyncio.timeout(30):
        while await server.execute("PUBSUB", "CHANNELS"):
            pass
    writer.publish(store.add())


async def test_text_reaches_another_process(store: Store, processes: list[FeedProcess]) -> None:
    writer, second, _ = processes
    reader = await second.follow()
    writer.write("Once ")
    await eventually(lambda: reader.texts == {"m": "Once "})
    writer.write("upon")
    writer.write(" a time \ud83d")
    await eventually(lambda: reader.texts == {"m": "Once upon a time \ud83d"})
    writer.publish(store.add(kind="message"))
    writer.write("The next", "n")
    await eventually(lambda: reader.texts.get("n") == "The next")
    assert reader.received[-2:] == ["message", "text"]


async def test_late_reader_in_another_process_receives_the_whole_text_so_far(
    store: Store, processes: list[FeedProcess]
) -> None:
    writer, second, third = processes
    first_reader = await second.follow()
    writer.write("Once ")
    writer.write("upon")
    await eventually(lambda: first_reader.texts == {"m": "Once upon"})
    late_reader = await third.follow()
    await eventually(lambda: late_reader.texts == {"m": "Once upon"})
    writer.write(" a time")
    await eventually(lambda: first_reader.texts == late_reader.texts == {"m": "Once upon a time"})


async def test_late_reader_of_a_long_text_receives_all_of_it(store: Store, processes: list[FeedProcess]) -> None:
    writer, second, third = processes
    first_reader = await second.follow()
    text = "".join(chr(ord("a") + number % 26) * 1_000 for number in range(200))
    for start in range(0, len(text), 1_000):
        writer.write(text[start : start + 1_000])
    await eventually(lambda: first_reader.texts == {"m": text})
    late_reader = await third.follow()
    await eventually(lambda: late_reader.texts == {"m": text})


async def test_late_reader_while_text_is_written_receives_every_piece_once(
    store: Store, processes: list[FeedProcess]
) -> None:
    writer, second, third = processes
    readers = [await second.follow()]
    for number in range(300):
        writer.write(f"{number} ")
        if number == 100:
            readers.append(await third.start_reader())
        await asyncio.sleep(0)
    expected = "".join(f"{number} " for number in range(300))
    await eventually(lambda: all(reader.texts == {"m": expected} for reader in readers))


async def test_late_reader_does_not_receive_ended_text(store: Store, processes: list[FeedProcess]) -> None:
    writer, second, third = processes
    first_reader = await second.follow()
    writer.write("given up")
    await eventually(lambda: first_reader.texts == {"m": "given up"})
    writer.feed.end_delta("s")
    late_reader = await third.follow()
    writer.write("again")
    await eventually(lambda: late_reader.texts == {"m": "again"})


async def test_end_of_the_run_ends_the_text_of_a_crashed_worker(store: Store, processes: list[FeedProcess]) -> None:
    crashed_writer, second, third = processes
    reader = await third.follow()
    crashed_writer.write("half")
    await eventually(lambda: reader.texts == {"m": "half"})
    await crashed_writer.connection.__aexit__()
    second.publish(store.add(kind="error"))
    await eventually(lambda: reader.numbers == [1])
    late_readers = [await second.follow(), await third.follow()]
    second.publish(store.add())
    await eventually(lambda: all(late_reader.numbers == [1, 2] for late_reader in late_readers))
    assert [late_reader.texts for late_reader in late_readers] == [{}, {}]


async def test_redis_stores_nothing_and_all_channels_have_the_prefix(
    store: Store, server: RedisServer, processes: list[FeedProcess]
) -> None:
    writer, second, _ = processes
    reader = await second.follow()
    writer.write("text")
    await eventually(lambda: reader.texts == {"m": "text"})
    await eventually(lambda: writer.is_subscribed("text:s"))
    assert await server.execute("KEYS", "*") == []
    assert sorted(await server.execute("PUBSUB", "CHANNELS")) == [b"test:session:s", b"test:text:s"]
    writer.publish(store.add(kind="message"))
    await eventually(lambda: not writer.is_subscribed("text:s"))


async def test_deleting_a_session_ends_its_readers_in_every_process(store: Store, processes: list[FeedProcess]) -> None:
    readers = [await process.follow() for process in processes]
    other = await processes[1].follow("t")
    store.polls_fail = True
    del store.events["s"]
    processes[0].feed.close_session("s")
    await eventually(lambda: all(reader.ended for reader in readers))
    processes[0].publish(store.add("t"), session_id="t")
    await eventually(lambda: other.numbers == [1])


@pytest.mark.parametrize("kind", ["message", "title", "done"])
async def test_list_change_reaches_every_process(
    store: Store, processes: list[FeedProcess], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_NOTIFIED_LIST_POLL_TICKS", 10**9)
    writer, second, _ = processes
    seen = await second.feed.sessions_changed(0)
    await eventually(lambda: second.is_subscribed("sessions"))
    seen = await second.feed.sessions_changed(0)
    assert seen is not None
    changed = asyncio.create_task(second.feed.sessions_changed(seen))
    writer.publish(store.add(kind=kind))
    seen = await asyncio.wait_for(changed, 30)
    assert seen is not None
    changed = asyncio.create_task(second.feed.sessions_changed(seen))
    writer.feed.notify_list_changed()
    assert await asyncio.wait_for(changed, 30)


async def test_closed_feed_publishes_nothing_and_others_continue(store: Store, processes: list[FeedProcess]) -> None:
    closed, second, third = processes
    ended_reader, reader = await closed.follow(), await second.follow()
    closed.feed.close()
    await eventually(lambda: ended_reader.ended)
    closed.write("nothing")
    closed.publish(store.add("t"), session_id="t")
    third.publish(store.add())
    await eventually(lambda: reader.numbers == [1])
    assert reader.texts == {}
    assert await closed.feed.sessions_changed(0) is None
