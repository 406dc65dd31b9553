"""Feeds of several processes when Redis loses something, is away, or is not there at all: the store knows."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.feeds import Process, Store, processes, until
from tests.support.redis_server import RedisServer


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def three(store: Store, server: RedisServer) -> AsyncIterator[list[Process]]:
    async with processes(3, store, server) as opened:
        yield opened


async def test_a_worker_that_dies_between_writing_and_telling_is_found_out_by_looking(
    store: Store, three: list[Process]
) -> None:
    reader = await three[1].follow()
    store.add()
    await until(lambda: reader.numbers == [1])
    three[0].publish(store.add())
    await until(lambda: reader.numbers == [1, 2])
    del store.events["s"]
    await until(lambda: reader.ended)


async def test_a_store_that_is_away_ends_no_follower(store: Store, three: list[Process]) -> None:
    reader = await three[1].follow()
    store.away = True
    looks = store.looks
    await until(lambda: store.looks > looks)
    store.away = False
    store.add()
    await until(lambda: reader.numbers == [1])


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_redis_may_go_and_come_back_in_the_middle(
    store: Store, server: RedisServer, three: list[Process], how: str
) -> None:
    here, there, _ = three
    reader = await there.follow()
    listing = asyncio.create_task(there.feed.sessions_changed(10**6))
    here.publish(store.add())
    here.write("before, ")
    await until(lambda: reader.numbers == [1] and reader.texts == {"m": "before, "})
    if how == "killed":
        await server.kill()
    else:
        server.freeze()
    here.publish(store.add())
    here.write("meanwhile, ")
    await until(lambda: reader.numbers == [1, 2])
    await until(lambda: not here.bus.connected and not there.bus.connected)
    for _ in range(50):
        here.publish(store.add())
    await until(lambda: len(reader.numbers) == 52)
    if how == "killed":
        await server.start()
    else:
        server.thaw()
    await until(lambda: here.bus.connected and there.bus.confirmed("session:s"))
    here.write("after")
    await until(lambda: reader.texts == {"m": "before, meanwhile, after"})
    here.publish(store.add(kind="message"))
    await until(lambda: len(reader.numbers) == 53)
    assert reader.numbers == list(range(1, 54))
    listing.cancel()


async def test_a_process_whose_redis_is_away_tells_the_others_when_it_is_back(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, _ = three
    reader = await there.follow()
    await server.kill()
    await until(lambda: not here.bus.connected)
    here.publish(store.add())
    here.write("half a mess", "given up")
    here.feed.end_delta("s")
    here.write("Hello")
    await until(lambda: reader.numbers == [1])
    await server.start()
    await until(lambda: reader.texts == {"m": "Hello"})
    await until(lambda: here.bus.waiting == 0)


async def test_without_redis_at_the_start_readers_look_into_the_store_until_it_comes(
    store: Store, server: RedisServer
) -> None:
    await server.kill()
    async with processes(2, store, server) as (here, there):
        reader = await there.follow()
        here.publish(store.add())
        await until(lambda: reader.numbers == [1])
        await server.start()
        await until(lambda: here.bus.connected and there.bus.confirmed("session:s"))
        store.away = True  # to those who look: now they are told
        here.publish(store.add())
        await until(lambda: reader.numbers == [1, 2])


async def test_without_redis_at_all_processes_meet_in_the_store(store: Store) -> None:
    async with processes(2, store, None) as (here, there):
        reader = await there.follow()
        seen = await there.feed.sessions_changed(0)
        assert seen is not None
        here.publish(store.add())
        await until(lambda: reader.numbers == [1])
        assert await asyncio.wait_for(there.feed.sessions_changed(seen), 10)
        del store.events["s"]
        here.feed.close_session("s")
        await until(lambda: reader.ended)


async def test_nothing_is_asked_of_the_store_while_nobody_follows(store: Store) -> None:
    async with processes(2, store, None) as (here, there):
        await here.follow("t")
        await until(lambda: store.looks > 0)
        await here.end()
        await until(lambda: not here.feed._needed.is_set())
        looks = store.looks
        there.publish(store.add())
        assert store.looks == looks


async def test_when_a_subscription_begins_readers_look_into_the_store_once_more(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    store.silent = True
    server.freeze()
    reader = await three[1].attend()
    assert not three[1].bus.confirmed("session:s")
    store.add()
    server.thaw()
    await until(lambda: reader.numbers == [1])


async def test_who_follows_does_not_trust_what_its_process_knew_before(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, _ = three
    store.silent = True
    await server.kill()
    here.publish(store.add())
    there.publish(store.add())
    reader = await here.attend(after=1)
    assert reader.numbers == [2]


async def test_text_that_was_on_its_way_when_redis_died_is_sent_again(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, _ = three
    reader = await there.follow()
    here.write("before, ")
    await until(lambda: reader.texts == {"m": "before, "})
    server.freeze()
    here.write("last")
    await until(lambda: not here.bus.connected)
    await server.kill()
    await server.start()
    await until(lambda: reader.texts == {"m": "before, last"})
