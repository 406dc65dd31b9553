"""Feeds of several processes over one Redis: what one writes the readers of the others see."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.infrastructure.streams import polling
from app.infrastructure.streams.redis.frames import RECORDS_BYTES
from app.infrastructure.streams.redis.texts import TEXT_CHARACTERS, TEXT_SECONDS
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


async def test_records_of_one_process_are_followed_in_the_others_without_the_store(
    store: Store, three: list[Process]
) -> None:
    here, there, elsewhere = three
    readers = [await there.follow(), await elsewhere.follow(), await here.follow()]
    here.publish(store.add())
    await until(lambda: all(reader.numbers == [1] for reader in readers))
    store.away = True  # to those who look, from time to time, what they were not told
    reads = store.reads
    for number in range(2, 200):
        here.publish(store.add())
        if number % 7 == 0:
            await asyncio.sleep(0)
    await until(lambda: all(reader.numbers == list(range(1, 200)) for reader in readers))
    assert store.reads == reads


async def test_records_too_large_to_send_are_read_from_the_store(store: Store, three: list[Process]) -> None:
    here, there, _ = three
    reader = await there.follow()
    here.publish(store.add(size=RECORDS_BYTES + 1))
    here.publish(store.add())
    await until(lambda: reader.numbers == [1, 2])


async def test_records_of_two_writers_out_of_their_order_come_in_order_and_once(
    store: Store, three: list[Process]
) -> None:
    here, there, elsewhere = three
    reader = await there.follow()
    first = [store.add() for _ in range(6)]
    here.publish(*first)
    await until(lambda: reader.numbers == [1, 2, 3, 4, 5, 6])
    seventh, eighth = store.add(), store.add()
    elsewhere.publish(eighth)
    await until(lambda: reader.numbers == list(range(1, 9)))
    here.publish(seventh)
    here.publish(eighth)
    elsewhere.publish(store.add())
    await until(lambda: reader.numbers[-1] == 9)
    assert reader.numbers == list(range(1, 10))


async def test_who_writes_and_who_reads_may_change_places(store: Store, three: list[Process]) -> None:
    readers = [await process.follow() for process in three]
    for number in range(60):
        three[number % 3].publish(store.add())
        await asyncio.sleep(0)
    await until(lambda: all(len(reader.numbers) == 60 for reader in readers))
    assert all(reader.numbers == list(range(1, 61)) for reader in readers)


async def test_what_is_written_while_a_subscription_begins_is_not_missed(store: Store, three: list[Process]) -> None:
    here, there, _ = three
    following = asyncio.create_task(there.follow())
    while not following.done():
        here.publish(store.add())
        await asyncio.sleep(0)
    reader = await following
    store.away = True  # to those who look
    await until(lambda: len(reader.numbers) == len(store.events["s"]))
    assert reader.numbers == list(range(1, len(reader.numbers) + 1))


async def test_a_process_subscribes_only_to_what_is_followed_in_it(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, _ = three
    await there.follow()
    assert await server.ask("PUBSUB", "CHANNELS") == [b"test:session:s"]
    await there.end()
    async with asyncio.timeout(30):
        while await server.ask("PUBSUB", "CHANNELS"):
            pass
    here.publish(store.add())


async def test_text_is_followed_in_another_process(store: Store, three: list[Process]) -> None:
    here, there, _ = three
    reader = await there.follow()
    here.write("Once ")
    await until(lambda: reader.texts == {"m": "Once "})
    here.write("upon")
    here.write(" a time \ud83d")
    await until(lambda: reader.texts == {"m": "Once upon a time \ud83d"})
    here.publish(store.add(kind="message"))
    here.write("The next", "n")
    await until(lambda: reader.texts.get("n") == "The next")
    assert reader.got[-2:] == ["message", "text"]


async def test_who_comes_in_the_middle_in_another_process_gets_the_whole_text_so_far(
    store: Store, three: list[Process]
) -> None:
    here, there, elsewhere = three
    first = await there.follow()
    here.write("Once ")
    here.write("upon")
    await until(lambda: first.texts == {"m": "Once upon"})
    late = await elsewhere.follow()
    await until(lambda: late.texts == {"m": "Once upon"})
    here.write(" a time")
    await until(lambda: first.texts == late.texts == {"m": "Once upon a time"})


async def test_retracted_text_is_given_to_nobody_who_comes_later(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, elsewhere = three
    first = await there.follow()
    here.write("given up")
    await until(lambda: first.texts == {"m": "given up"})
    here.feed.end_delta("s")
    async with asyncio.timeout(30):
        while await server.ask("KEYS", "*"):
            pass
    late = await elsewhere.follow()
    here.write("again")
    await until(lambda: late.texts == {"m": "again"})


async def test_the_text_of_a_worker_that_died_goes_with_the_end_of_the_run(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, elsewhere = three
    reader = await elsewhere.follow()
    here.write("half")
    await until(lambda: reader.texts == {"m": "half"})
    there.publish(store.add(kind="error"))
    async with asyncio.timeout(30):
        while await server.ask("KEYS", "*"):
            pass
    assert (await there.follow()).texts == {}


async def test_what_redis_keeps_has_the_prefix_expires_and_is_bounded(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, _ = three
    reader = await there.follow()
    here.write("x" * (TEXT_CHARACTERS - 1))
    await until(lambda: reader.texts == {"m": "x" * (TEXT_CHARACTERS - 1)})
    keys = await server.ask("KEYS", "*")
    assert keys == [b"test:text:s"]
    assert 0 < await server.ask("TTL", keys[0]) <= TEXT_SECONDS
    here.write("yz")
    await until(lambda: reader.texts["m"].endswith("xyz"))
    assert await server.ask("KEYS", "*") == []


async def test_what_was_in_redis_may_vanish_in_the_middle_of_a_text(
    store: Store, server: RedisServer, three: list[Process]
) -> None:
    here, there, elsewhere = three
    reader = await there.follow()
    here.write("Once ")
    await until(lambda: reader.texts == {"m": "Once "})
    await server.ask("FLUSHALL")
    late = await elsewhere.follow()
    here.write("upon a time")
    await until(lambda: reader.texts == late.texts == {"m": "Once upon a time"})
    here.publish(store.add(kind="message"))
    await until(lambda: reader.numbers == late.numbers == [1])


async def test_followers_of_a_deleted_session_end_in_every_process(store: Store, three: list[Process]) -> None:
    readers = [await process.follow() for process in three]
    other = await three[1].follow("t")
    store.away = True  # to those who look
    del store.events["s"]
    three[0].feed.close_session("s")
    await until(lambda: all(reader.ended for reader in readers))
    three[0].publish(store.add("t"), session_id="t")
    await until(lambda: other.numbers == [1])


@pytest.mark.parametrize("kind", ["message", "title", "done"])
async def test_the_list_changes_in_every_process(
    store: Store, three: list[Process], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_LIST_SLOW_SECONDS", 3600.0)  # so that looking is no help
    here, there, _ = three
    seen = await there.feed.sessions_changed(0)
    await until(lambda: there.bus.confirmed("sessions"))
    seen = await there.feed.sessions_changed(0)
    assert seen is not None
    waiting = asyncio.create_task(there.feed.sessions_changed(seen))
    here.publish(store.add(kind=kind))
    seen = await asyncio.wait_for(waiting, 30)
    assert seen is not None
    waiting = asyncio.create_task(there.feed.sessions_changed(seen))
    here.feed.notify_list_changed()
    assert await asyncio.wait_for(waiting, 30)


async def test_after_its_end_a_process_tells_nothing_and_the_others_go_on(store: Store, three: list[Process]) -> None:
    here, there, elsewhere = three
    gone, reader = await here.follow(), await there.follow()
    here.feed.close()
    await until(lambda: gone.ended)
    here.write("nothing")
    here.publish(store.events["t"][0] if store.events["t"] else store.add("t"), session_id="t")
    elsewhere.publish(store.add())
    await until(lambda: reader.numbers == [1])
    assert reader.texts == {}
    assert await here.feed.sessions_changed(0) is None
