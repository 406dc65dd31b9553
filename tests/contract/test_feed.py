"""The `Feed` port, on the feed of a single process and on that of one of many. What passes between processes is in
`test_feed_between_processes.py`."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from app.domain.external.feed import Feed
from app.domain.models.event import TextDelta
from app.infrastructure.streams.memory import MemoryFeed
from app.infrastructure.streams.memory.topics import _TAIL_BYTES, _TAIL_RECORDS
from app.infrastructure.streams.redis import RedisBus
from tests.support.feeds import Settled, Store, record, records
from tests.support.redis_server import RedisServer


@pytest.fixture(params=["memory", "redis"])
async def feed(request: pytest.FixtureRequest) -> AsyncIterator[Feed]:
    if request.param == "memory":
        alone = MemoryFeed()
        yield alone
        alone.close()
        return
    async with RedisServer() as server, RedisBus(server.url, prefix="test") as bus:
        async with Settled(MemoryFeed(alone=False), bus, Store().heads) as one_of_many:
            await one_of_many.settle()
            yield one_of_many


@pytest.fixture
def alone() -> Iterator[Feed]:
    feed = MemoryFeed()
    yield feed
    feed.close()


async def waiting(call: "asyncio.Task[object]") -> bool:
    """Whether `call` still waits after it had every chance to go on."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not call.done()


async def test_a_follower_of_a_session_that_nobody_spoke_of_must_ask_the_journal(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        assert subscription.records_after(0) is None
        assert subscription.records_after(7) is None


async def test_records_published_while_following_are_at_hand(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", records(4, 6))
        assert subscription.records_after(2) is None
        assert list(subscription.records_after(3) or ()) == records(4, 6)
        assert list(subscription.records_after(5) or ()) == records(6, 6)
        assert subscription.records_after(6) == ()


async def test_in_a_single_process_who_comes_later_knows_whether_it_is_up_to_date(alone: Feed) -> None:
    alone.publish("s", records(1, 3))
    async with alone.subscribe("s") as subscription:
        assert subscription.records_after(2) is None
        assert subscription.records_after(3) == ()
        alone.publish("s", records(4, 4))
        assert list(subscription.records_after(3) or ()) == records(4, 4)


async def test_who_comes_later_asks_the_journal_no_more_than_once_whether_it_is_up_to_date(feed: Feed) -> None:
    feed.publish("s", records(1, 3))
    async with feed.subscribe("s") as subscription:
        assert not subscription.records_after(3)
        assert subscription.records_after(3) == ()
        feed.publish("s", records(4, 4))
        assert list(subscription.records_after(3) or ()) == records(4, 4)
        assert subscription.records_after(4) == ()


async def test_what_was_published_before_comes_only_once(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", records(1, 3))
        feed.publish("s", records(2, 4))
        feed.publish("s", records(1, 2))
        assert list(subscription.records_after(0) or ()) == records(1, 4)


async def test_what_was_kept_goes_with_the_last_follower(feed: Feed) -> None:
    async with feed.subscribe("s") as first:
        async with feed.subscribe("s"):
            feed.publish("s", records(1, 3))
        assert list(first.records_after(0) or ()) == records(1, 3)
    async with feed.subscribe("s") as later:
        assert later.records_after(0) is None


async def test_the_tail_is_bounded_in_number(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        for number in range(1, _TAIL_RECORDS + 101):
            feed.publish("s", [record(number)])
        assert subscription.records_after(99) is None
        assert len(subscription.records_after(100) or ()) == _TAIL_RECORDS
        feed.publish("s", records(_TAIL_RECORDS + 101, 3 * _TAIL_RECORDS + 100))
        assert subscription.records_after(2 * _TAIL_RECORDS + 99) is None
        assert len(subscription.records_after(2 * _TAIL_RECORDS + 100) or ()) == _TAIL_RECORDS


async def test_the_tail_is_bounded_in_bytes(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        for number in range(1, 11):
            feed.publish("s", [record(number, size=_TAIL_BYTES // 4)])
        assert subscription.records_after(5) is None
        assert [r.number for r in subscription.records_after(6) or ()] == [7, 8, 9, 10]
        feed.publish("s", [record(11, size=_TAIL_BYTES + 1)])
        assert subscription.records_after(10) is None
        assert subscription.records_after(11) == ()
        feed.publish("s", [record(12)])
        assert subscription.records_after(10) is None
        assert list(subscription.records_after(11) or ()) == [record(12)]


async def test_a_gap_sends_followers_to_the_journal(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", records(1, 3))
        feed.publish("s", records(5, 6))
        assert subscription.records_after(3) is None
        assert list(subscription.records_after(4) or ()) == records(5, 6)


async def test_followers_wake_when_records_come_and_only_theirs(feed: Feed) -> None:
    async with feed.subscribe("s") as mine, feed.subscribe("t") as other:
        mine_changed, other_changed = (
            asyncio.create_task(mine.wait_for_change()),
            asyncio.create_task(other.wait_for_change()),
        )
        assert await waiting(mine_changed)
        feed.publish("s", records(1, 1))
        assert await mine_changed is True
        assert await waiting(other_changed)
        other_changed.cancel()


async def test_what_comes_between_a_look_and_the_wait_is_not_missed(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        assert not subscription.records_after(0)
        feed.publish("s", records(1, 1))
        assert await subscription.wait_for_change() is True
        again = asyncio.create_task(subscription.wait_for_change())
        assert await waiting(again)
        again.cancel()


async def test_a_hundred_followers_see_the_same_records_in_the_same_order(feed: Feed) -> None:
    async def follow() -> list[int]:
        seen: list[int] = []
        async with feed.subscribe("s") as subscription:
            started.append(subscription)
            while len(seen) < 200:
                seen += [found.number for found in subscription.records_after(seen[-1] if seen else 0) or ()]
                if len(seen) < 200:
                    assert await subscription.wait_for_change()
        return seen

    started: list[object] = []
    followers = [asyncio.create_task(follow()) for _ in range(100)]
    while len(started) < 100:
        await asyncio.sleep(0)
    for number in range(1, 201):
        feed.publish("s", [record(number)])
        if number % 7 == 0:
            await asyncio.sleep(0)
    assert all(seen == list(range(1, 201)) for seen in await asyncio.gather(*followers))


async def test_text_comes_in_pieces_joined_for_who_is_slow(feed: Feed) -> None:
    async with feed.subscribe("s") as quick, feed.subscribe("s") as slow:
        assert quick.next_delta() is None
        feed.publish_delta("s", TextDelta("m", "Hel"))
        assert await quick.wait_for_change()
        assert quick.next_delta() == TextDelta("m", "Hel")
        assert quick.next_delta() is None
        feed.publish_delta("s", TextDelta("m", "lo"))
        feed.publish_delta("s", TextDelta("m", "!"))
        assert quick.next_delta() == TextDelta("m", "lo!")
        assert slow.next_delta() == TextDelta("m", "Hello!")


async def test_who_comes_in_the_middle_gets_the_whole_text_so_far(feed: Feed) -> None:
    feed.publish_delta("s", TextDelta("m", "Once "))
    feed.publish_delta("s", TextDelta("m", "upon"))
    async with feed.subscribe("s") as subscription:
        assert subscription.next_delta() == TextDelta("m", "Once upon")
        feed.publish_delta("s", TextDelta("m", " a time"))
        assert subscription.next_delta() == TextDelta("m", " a time")


async def test_a_new_message_starts_afresh(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish_delta("s", TextDelta("m1", "never read"))
        feed.publish_delta("s", TextDelta("m2", "new"))
        assert subscription.next_delta() == TextDelta("m2", "new")
        feed.end_delta("s")
        assert subscription.next_delta() is None
        feed.publish_delta("s", TextDelta("m2", "again"))
        assert subscription.next_delta() == TextDelta("m2", "again")


async def test_retracted_text_is_not_delivered(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish_delta("s", TextDelta("m", "given up"))
        feed.end_delta("s")
        assert subscription.next_delta() is None
    feed.end_delta("nobody")


async def test_text_that_a_broken_run_left_behind_goes_with_its_end(feed: Feed) -> None:
    feed.publish_delta("s", TextDelta("m", "half"))
    feed.publish("s", [record(1, "error")])
    async with feed.subscribe("s") as subscription:
        assert subscription.next_delta() is None


async def test_followers_of_a_deleted_session_end_and_others_go_on(feed: Feed) -> None:
    async with feed.subscribe("s") as gone, feed.subscribe("t") as other:
        changed = asyncio.create_task(gone.wait_for_change())
        assert await waiting(changed)
        feed.close_session("s")
        assert await changed is False
        assert await gone.wait_for_change() is False
        feed.publish("t", records(1, 1))
        assert await other.wait_for_change() is True
    feed.close_session("nobody")


async def test_at_shutdown_every_follower_ends_also_who_comes_too_late(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        changed = asyncio.create_task(subscription.wait_for_change())
        listing = asyncio.create_task(feed.sessions_changed(10**6))
        assert await waiting(changed)
        feed.close()
        assert await changed is False
        assert await listing is None
    async with feed.subscribe("s") as late:
        assert await late.wait_for_change() is False
    assert await feed.sessions_changed(0) is None


async def test_the_first_look_at_the_list_does_not_wait(feed: Feed) -> None:
    assert await feed.sessions_changed(0) is not None


@pytest.mark.parametrize(
    ("kind", "wakes"),
    [
        ("message", True),
        ("title", True),
        ("wait", True),
        ("error", True),
        ("done", True),
        ("step", False),
        ("plan", False),
        ("tool", False),
    ],
)
async def test_the_list_changes_with_the_events_that_it_shows(feed: Feed, kind: str, wakes: bool) -> None:
    seen = await feed.sessions_changed(0)
    assert seen is not None
    followers = [asyncio.create_task(feed.sessions_changed(seen)) for _ in range(3)]
    assert await waiting(followers[0])
    feed.publish("s", [record(1, kind)])
    assert await waiting(followers[0]) is not wakes
    feed.notify_list_changed()
    versions = await asyncio.gather(*followers)
    assert all(version is not None and version > seen for version in versions)


async def test_changes_of_the_list_that_come_faster_than_they_are_read_join(feed: Feed) -> None:
    seen = await feed.sessions_changed(0)
    assert seen is not None
    for _ in range(5):
        feed.notify_list_changed()
    latest = await feed.sessions_changed(seen)
    assert latest is not None
    call = asyncio.create_task(feed.sessions_changed(latest))
    assert await waiting(call)
    call.cancel()


async def test_publishing_nothing_wakes_nobody(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", [])
        call = asyncio.create_task(subscription.wait_for_change())
        assert await waiting(call)
        call.cancel()
