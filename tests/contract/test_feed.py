"""Contract tests of the `Feed` port: with the feed of a single process, and with the feed of one of several processes.

`test_feed_between_processes.py` tests what passes between processes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from app.domain.external.feed import Feed
from app.domain.models.event import StatusDelta, TextDelta
from app.infrastructure.streams.memory import MAX_TAIL_BYTES, MAX_TAIL_RECORDS, MemoryFeed
from app.infrastructure.streams.redis.connection import RedisConnection
from tests.support.feeds import ConfirmedRedisFeed, Store, record, records
from tests.support.redis_server import RedisServer


@pytest.fixture(params=["memory", "redis"])
async def feed(request: pytest.FixtureRequest) -> AsyncIterator[Feed]:
    if request.param == "memory":
        memory_feed = MemoryFeed()
        yield memory_feed
        memory_feed.close()
        return
    async with RedisServer() as server, RedisConnection(server.url, prefix="test") as connection:
        async with ConfirmedRedisFeed(connection, Store().last_event_numbers) as redis_feed:
            await redis_feed.confirm_list()
            yield redis_feed


@pytest.fixture
def single_process_feed() -> Iterator[Feed]:
    feed = MemoryFeed()
    yield feed
    feed.close()


async def is_waiting(task: "asyncio.Task[object]") -> bool:
    """Return whether `task` is still waiting after several turns of the event loop."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


async def test_subscriber_of_unpublished_session_must_read_event_log(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        assert subscription.records_after(0) is None
        assert subscription.records_after(7) is None


async def test_records_published_while_subscribed_are_returned(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", records(4, 6))
        assert subscription.records_after(2) is None
        assert list(subscription.records_after(3) or ()) == records(4, 6)
        assert list(subscription.records_after(5) or ()) == records(6, 6)
        assert subscription.records_after(6) == ()


async def test_late_subscriber_in_single_process_knows_whether_it_is_up_to_date(single_process_feed: Feed) -> None:
    single_process_feed.publish("s", records(1, 3))
    async with single_process_feed.subscribe("s") as subscription:
        assert subscription.records_after(2) is None
        assert subscription.records_after(3) == ()
        single_process_feed.publish("s", records(4, 4))
        assert list(subscription.records_after(3) or ()) == records(4, 4)


async def test_late_subscriber_reads_event_log_at_most_once_when_up_to_date(feed: Feed) -> None:
    feed.publish("s", records(1, 3))
    async with feed.subscribe("s") as subscription:
        assert not subscription.records_after(3)
        assert subscription.records_after(3) == ()
        feed.publish("s", records(4, 4))
        assert list(subscription.records_after(3) or ()) == records(4, 4)
        assert subscription.records_after(4) == ()


async def test_records_published_again_are_returned_once(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", records(1, 3))
        feed.publish("s", records(2, 4))
        feed.publish("s", records(1, 2))
        assert list(subscription.records_after(0) or ()) == records(1, 4)


async def test_records_are_dropped_with_the_last_subscriber(feed: Feed) -> None:
    async with feed.subscribe("s") as first:
        async with feed.subscribe("s"):
            feed.publish("s", records(1, 3))
        assert list(first.records_after(0) or ()) == records(1, 3)
    async with feed.subscribe("s") as later:
        assert later.records_after(0) is None


async def test_number_of_kept_records_is_bounded(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        for number in range(1, MAX_TAIL_RECORDS + 101):
            feed.publish("s", [record(number)])
        assert subscription.records_after(99) is None
        assert len(subscription.records_after(100) or ()) == MAX_TAIL_RECORDS
        feed.publish("s", records(MAX_TAIL_RECORDS + 101, 3 * MAX_TAIL_RECORDS + 100))
        assert subscription.records_after(2 * MAX_TAIL_RECORDS + 99) is None
        assert len(subscription.records_after(2 * MAX_TAIL_RECORDS + 100) or ()) == MAX_TAIL_RECORDS


async def test_size_of_kept_records_is_bounded(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        for number in range(1, 11):
            feed.publish("s", [record(number, size=MAX_TAIL_BYTES // 4)])
        assert subscription.records_after(5) is None
        assert [found.number for found in subscription.records_after(6) or ()] == [7, 8, 9, 10]
        feed.publish("s", [record(11, size=MAX_TAIL_BYTES + 1)])
        assert subscription.records_after(10) is None
        assert subscription.records_after(11) == ()
        feed.publish("s", [record(12)])
        assert subscription.records_after(10) is None
        assert list(subscription.records_after(11) or ()) == [record(12)]


async def test_subscriber_before_a_gap_must_read_event_log(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", records(1, 3))
        feed.publish("s", records(5, 6))
        assert subscription.records_after(3) is None
        assert list(subscription.records_after(4) or ()) == records(5, 6)


async def test_publish_wakes_only_subscribers_of_the_session(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription, feed.subscribe("t") as other:
        changed = asyncio.create_task(subscription.wait_for_change())
        other_changed = asyncio.create_task(other.wait_for_change())
        assert await is_waiting(changed)
        feed.publish("s", records(1, 1))
        assert await changed is True
        assert await is_waiting(other_changed)
        other_changed.cancel()


async def test_change_before_the_wait_ends_the_wait_at_once(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        assert not subscription.records_after(0)
        feed.publish("s", records(1, 1))
        assert await subscription.wait_for_change() is True
        again = asyncio.create_task(subscription.wait_for_change())
        assert await is_waiting(again)
        again.cancel()


async def test_publishing_no_records_wakes_nobody(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish("s", [])
        changed = asyncio.create_task(subscription.wait_for_change())
        assert await is_waiting(changed)
        changed.cancel()


async def test_hundred_subscribers_receive_the_same_records_in_order(feed: Feed) -> None:
    subscribed: list[object] = []

    async def follow() -> list[int]:
        seen: list[int] = []
        async with feed.subscribe("s") as subscription:
            subscribed.append(subscription)
            while len(seen) < 200:
                seen += [found.number for found in subscription.records_after(seen[-1] if seen else 0) or ()]
                if len(seen) < 200:
                    assert await subscription.wait_for_change()
        return seen

    subscribers = [asyncio.create_task(follow()) for _ in range(100)]
    while len(subscribed) < 100:
        await asyncio.sleep(0)
    for number in range(1, 201):
        feed.publish("s", [record(number)])
        if number % 7 == 0:
            await asyncio.sleep(0)
    assert all(seen == list(range(1, 201)) for seen in await asyncio.gather(*subscribers))


async def test_deltas_are_joined_for_a_slow_subscriber(feed: Feed) -> None:
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


async def test_late_subscriber_receives_the_whole_text_so_far(feed: Feed) -> None:
    feed.publish_delta("s", TextDelta("m", "Once "))
    feed.publish_delta("s", TextDelta("m", "upon"))
    async with feed.subscribe("s") as subscription:
        assert subscription.next_delta() == TextDelta("m", "Once upon")
        feed.publish_delta("s", TextDelta("m", " a time"))
        assert subscription.next_delta() == TextDelta("m", " a time")


async def test_new_message_replaces_unread_text(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish_delta("s", TextDelta("m1", "never read"))
        feed.publish_delta("s", TextDelta("m2", "new"))
        assert subscription.next_delta() == TextDelta("m2", "new")
        feed.end_delta("s")
        assert subscription.next_delta() is None
        feed.publish_delta("s", TextDelta("m2", "again"))
        assert subscription.next_delta() == TextDelta("m2", "again")


async def test_ended_text_is_not_delivered(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish_delta("s", TextDelta("m", "given up"))
        feed.end_delta("s")
        assert subscription.next_delta() is None
    feed.end_delta("unknown")


async def test_newest_status_is_delivered_once_to_present_subscribers(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish_status("s", StatusDelta("old"))
        feed.publish_status("s", StatusDelta("limited", 2.5))
        assert await subscription.wait_for_change()
        assert subscription.next_delta() == StatusDelta("limited", 2.5)
        assert subscription.next_delta() is None
        async with feed.subscribe("s") as late:
            assert late.next_delta() is None
        feed.publish_status("s", StatusDelta("limited", 2.5))
        assert subscription.next_delta() == StatusDelta("limited", 2.5)
    feed.publish_status("unknown", StatusDelta("limited"))


async def test_status_is_dropped_once_text_or_a_record_has_followed(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        feed.publish_status("s", StatusDelta("limited"))
        feed.publish_delta("s", TextDelta("m", "text"))
        assert subscription.next_delta() == TextDelta("m", "text")
        feed.publish_status("s", StatusDelta("limited"))
        feed.publish("s", [record(1)])
        assert subscription.next_delta() is None


async def test_terminal_event_ends_the_text_of_a_failed_run(feed: Feed) -> None:
    feed.publish_delta("s", TextDelta("m", "half"))
    feed.publish("s", [record(1, "error")])
    async with feed.subscribe("s") as subscription:
        assert subscription.next_delta() is None


async def test_close_session_ends_only_its_subscribers(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription, feed.subscribe("t") as other:
        changed = asyncio.create_task(subscription.wait_for_change())
        assert await is_waiting(changed)
        feed.close_session("s")
        assert await changed is False
        assert await subscription.wait_for_change() is False
        feed.publish("t", records(1, 1))
        assert await other.wait_for_change() is True
    feed.close_session("unknown")


async def test_close_ends_all_subscribers_also_late_ones(feed: Feed) -> None:
    async with feed.subscribe("s") as subscription:
        changed = asyncio.create_task(subscription.wait_for_change())
        list_changed = asyncio.create_task(feed.sessions_changed(10**6))
        assert await is_waiting(changed)
        feed.close()
        assert await changed is False
        assert await list_changed is None
    async with feed.subscribe("s") as late:
        assert await late.wait_for_change() is False
    assert await feed.sessions_changed(0) is None


async def test_first_version_of_the_list_is_returned_at_once(feed: Feed) -> None:
    assert await feed.sessions_changed(0) is not None


@pytest.mark.parametrize(
    ("kind", "changes_list"),
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
async def test_list_changes_with_the_events_that_it_shows(feed: Feed, kind: str, changes_list: bool) -> None:
    seen = await feed.sessions_changed(0)
    assert seen is not None
    waiters = [asyncio.create_task(feed.sessions_changed(seen)) for _ in range(3)]
    assert await is_waiting(waiters[0])
    feed.publish("s", [record(1, kind)])
    assert await is_waiting(waiters[0]) is not changes_list
    feed.notify_list_changed()
    versions = await asyncio.gather(*waiters)
    assert all(version is not None and version > seen for version in versions)


async def test_rapid_list_changes_are_joined(feed: Feed) -> None:
    seen = await feed.sessions_changed(0)
    assert seen is not None
    for _ in range(5):
        feed.notify_list_changed()
    latest = await feed.sessions_changed(seen)
    assert latest is not None
    changed = asyncio.create_task(feed.sessions_changed(latest))
    assert await is_waiting(changed)
    changed.cancel()
