"""Feeds of several processes while Redis loses messages, is unavailable or is not configured: the store decides."""

import asyncio
from collections.abc import AsyncIterator

import pytest

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


async def test_polling_finds_events_that_a_crashed_worker_did_not_publish(
    store: Store, processes: list[FeedProcess]
) -> None:
    reader = await processes[1].follow()
    store.add()
    await eventually(lambda: reader.numbers == [1])
    processes[0].publish(store.add())
    await eventually(lambda: reader.numbers == [1, 2])
    del store.events["s"]
    await eventually(lambda: reader.ended)


async def test_failed_poll_ends_no_reader(store: Store, processes: list[FeedProcess]) -> None:
    reader = await processes[1].follow()
    store.polls_fail = True
    polls = store.polls
    await eventually(lambda: store.polls > polls)
    store.polls_fail = False
    store.add()
    await eventually(lambda: reader.numbers == [1])


@pytest.mark.parametrize("failure", ["killed", "frozen"])
async def test_readers_miss_nothing_while_redis_is_unavailable(
    store: Store, server: RedisServer, processes: list[FeedProcess], failure: str
) -> None:
    writer, second, _ = processes
    reader = await second.follow()
    list_changed = asyncio.create_task(second.feed.sessions_changed(10**6))
    writer.publish(store.add())
    writer.write("before, ")
    await eventually(lambda: reader.numbers == [1] and reader.texts == {"m": "before, "})
    if failure == "killed":
        await server.kill()
    else:
        server.freeze()
    writer.publish(store.add())
    writer.write("meanwhile, ")
    await eventually(lambda: reader.numbers == [1, 2])
    await eventually(lambda: not writer.connection.connected and not second.connection.connected)
    for _ in range(50):
        writer.publish(store.add())
    await eventually(lambda: len(reader.numbers) == 52)
    if failure == "killed":
        await server.start()
    else:
        server.thaw()
    await eventually(lambda: writer.connection.connected and second.is_subscribed("session:s"))
    writer.write("after")
    await eventually(lambda: reader.texts == {"m": "before, meanwhile, after"})
    writer.publish(store.add(kind="message"))
    await eventually(lambda: len(reader.numbers) == 53)
    assert reader.numbers == list(range(1, 54))
    list_changed.cancel()


async def test_text_written_while_redis_is_unavailable_is_sent_afterwards(
    store: Store, server: RedisServer, processes: list[FeedProcess]
) -> None:
    writer, second, _ = processes
    reader = await second.follow()
    await server.kill()
    await eventually(lambda: not writer.connection.connected)
    writer.publish(store.add())
    writer.write("half a mess", "given up")
    writer.feed.end_delta("s")
    writer.write("Hello")
    await eventually(lambda: reader.numbers == [1])
    await server.start()
    await eventually(lambda: reader.texts == {"m": "Hello"})
    await eventually(lambda: len(writer.connection.publisher) == 0)


async def test_start_without_redis_polls_until_redis_is_available(store: Store, server: RedisServer) -> None:
    await server.kill()
    async with feed_processes(2, store, server) as (writer, second):
        reader = await second.follow()
        writer.publish(store.add())
        await eventually(lambda: reader.numbers == [1])
        await server.start()
        await eventually(lambda: writer.connection.connected and second.is_subscribed("session:s"))
        store.polls_fail = True
        writer.publish(store.add())
        await eventually(lambda: reader.numbers == [1, 2])


async def test_processes_without_redis_exchange_events_through_the_store(store: Store) -> None:
    async with feed_processes(2, store, None) as (writer, second):
        reader = await second.follow()
        seen = await second.feed.sessions_changed(0)
        assert seen is not None
        writer.publish(store.add())
        await eventually(lambda: reader.numbers == [1])
        assert await asyncio.wait_for(second.feed.sessions_changed(seen), 10)
        del store.events["s"]
        writer.feed.close_session("s")
        await eventually(lambda: reader.ended)


async def test_store_is_not_polled_without_readers(store: Store) -> None:
    async with feed_processes(2, store, None) as (process, writer):
        await process.follow("t")
        await eventually(lambda: store.polls > 0)
        await process.stop_readers()
        await eventually(lambda: not process.feed._poll_needed.is_set())
        polls = store.polls
        writer.publish(store.add())
        assert store.polls == polls


async def test_confirmed_subscription_makes_readers_read_the_event_log(
    store: Store, server: RedisServer, processes: list[FeedProcess]
) -> None:
    store.polls_find_nothing = True
    server.freeze()
    reader = await processes[1].start_reader()
    assert not processes[1].is_subscribed("session:s")
    store.add()
    server.thaw()
    await eventually(lambda: reader.numbers == [1])


async def test_new_reader_reads_the_event_log_even_if_its_process_published_last(
    store: Store, server: RedisServer, processes: list[FeedProcess]
) -> None:
    first, second, _ = processes
    store.polls_find_nothing = True
    await server.kill()
    first.publish(store.add())
    second.publish(store.add())
    reader = await first.start_reader(after=1)
    assert reader.numbers == [2]


async def test_text_in_flight_when_redis_fails_is_sent_again(
    store: Store, server: RedisServer, processes: list[FeedProcess]
) -> None:
    writer, second, _ = processes
    reader = await second.follow()
    writer.write("before, ")
    await eventually(lambda: reader.texts == {"m": "before, "})
    server.freeze()
    writer.write("last")
    await eventually(lambda: not writer.connection.connected)
    await server.kill()
    await server.start()
    await eventually(lambda: reader.texts == {"m": "before, last"})
