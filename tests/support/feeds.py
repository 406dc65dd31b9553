"""Feeds of several processes over one store, and a reader that follows a session as a stream does."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from app.application.services.streams import EventStreams
from app.domain.errors import NotFound, StoreUnavailable
from app.domain.external.feed import Feed
from app.domain.models.event import EventRecord, StatusDelta, TextDelta
from app.domain.repositories.event_log import EventLog
from app.infrastructure.streams.memory import MemorySubscription
from app.infrastructure.streams.polling import PollingFeed
from app.infrastructure.streams.redis.connection import RedisConnection
from app.infrastructure.streams.redis.feed import RedisFeed
from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer


def record(number: int, kind: str = "step", size: int = 10) -> EventRecord:
    """Return a record with `size` bytes of data."""
    return EventRecord(number, kind, b"x" * size)


def records(first: int, last: int) -> list[EventRecord]:
    """Return the records with the numbers `first` to `last`."""
    return [record(number) for number in range(first, last + 1)]


class Store:
    """The events of the sessions `s` and `t`, shared by all processes."""

    def __init__(self) -> None:
        self.events: dict[str, list[EventRecord]] = {"s": [], "t": []}
        self.polls_fail = False
        """Whether polls fail, so that only notifications make readers read."""
        self.polls_find_nothing = False
        """Whether polls find no new events, so that only notifications make readers read."""
        self.reads = 0
        self.polls = 0

    def add(self, session_id: str = "s", kind: str = "step", size: int = 10) -> EventRecord:
        """Store and return the next record of a session."""
        events = self.events[session_id]
        events.append(record(len(events) + 1, kind, size))
        return events[-1]

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        """Implement `EventLog.read`."""
        self.reads += 1
        if session_id not in self.events:
            raise NotFound("no such session")
        return self.events[session_id][after : after + limit]

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """Implement `SessionRepository.last_event_numbers`."""
        self.polls += 1
        if self.polls_fail:
            raise StoreUnavailable("away")
        existing = [session_id for session_id in session_ids if session_id in self.events]
        return {session_id: 0 if self.polls_find_nothing else len(self.events[session_id]) for session_id in existing}


class FeedReader:
    """Follows a session and keeps what it received."""

    def __init__(self, store: Store, feed: Feed, session_id: str, after: int = 0) -> None:
        self._streams = EventStreams(cast("EventLog", store), feed)
        self._session_id = session_id
        self._after = after
        self.numbers: list[int] = []
        self.texts: dict[str, str] = {}
        """The received text of each message id."""
        self.statuses: list[StatusDelta] = []
        self.received: list[str] = []
        """The types of the received records, and `text` for each delta, in their order."""
        self.caught_up = False
        self.ended = False

    async def run(self) -> None:
        """Follow the session until its stream ends."""
        async for item in self._streams.follow(self._session_id, after=self._after):
            if isinstance(item, TextDelta):
                self.received.append("text")
                self.texts[item.message_id] = self.texts.get(item.message_id, "") + item.delta
            elif isinstance(item, StatusDelta):
                self.statuses.append(item)
            elif item:
                self.received += [found.type for found in item]
                self.numbers += [found.number for found in item]
            else:
                self.caught_up = True
        self.ended = True


class FeedProcess:
    """One of several processes: its feed and its readers."""

    def __init__(self, store: Store, feed: PollingFeed, connection: RedisConnection | None) -> None:
        self._store = store
        self.feed = feed
        self._connection = connection
        self._readers: list[asyncio.Task[None]] = []

    @property
    def connection(self) -> RedisConnection:
        """The connection to Redis."""
        assert self._connection is not None
        return self._connection

    def is_subscribed(self, name: str) -> bool:
        """Return whether Redis has confirmed this process's subscription to the channel `name`."""
        return self.connection.subscriber.is_subscribed(self.connection.name(name))

    async def start_reader(self, session_id: str = "s", after: int = 0) -> FeedReader:
        """Return a reader that has caught up, whether Redis has confirmed the subscription or not."""
        reader = FeedReader(self._store, self.feed, session_id, after)
        self._readers.append(asyncio.create_task(reader.run()))
        await eventually(lambda: reader.caught_up)
        return reader

    async def follow(self, session_id: str = "s") -> FeedReader:
        """Return a reader that has caught up and that receives what other processes publish."""
        reader = await self.start_reader(session_id)
        if self._connection is not None and self._connection.connected:
            await eventually(lambda: self.is_subscribed(f"session:{session_id}"))
        return reader

    def publish(self, *added: EventRecord, session_id: str = "s") -> None:
        """Publish records that were stored."""
        self.feed.publish(session_id, added)

    def write(self, text: str, message_id: str = "m") -> None:
        """Publish a piece of a message in session `s`."""
        self.feed.publish_delta("s", TextDelta(message_id, text))

    async def stop_readers(self) -> None:
        """Stop all readers of this process."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


@asynccontextmanager
async def feed_processes(count: int, store: Store, server: RedisServer | None) -> AsyncIterator[list[FeedProcess]]:
    """Open `count` processes with a common Redis, or without one."""
    async with AsyncExitStack() as stack:
        opened: list[FeedProcess] = []
        for _ in range(count):
            connection, feed = None, PollingFeed(store.last_event_numbers)
            if server is not None:
                connection = await stack.enter_async_context(RedisConnection(server.url, prefix="test"))
                feed = RedisFeed(connection, store.last_event_numbers)
            await stack.enter_async_context(feed)
            opened.append(FeedProcess(store, feed, connection))
            stack.push_async_callback(opened[-1].stop_readers)
        yield opened


class ConfirmedRedisFeed(RedisFeed):
    """A feed whose subscriptions begin when Redis has confirmed them.

    The confirmation wakes the subscribers once, which the tests of the port do not expect.
    """

    async def confirm_list(self) -> None:
        """Wait for the subscription to the list of sessions."""
        await self.sessions_changed(0)
        await self._confirmed("sessions")

    @asynccontextmanager
    async def subscribe(self, session_id: str) -> AsyncIterator[MemorySubscription]:
        """Implement `Feed.subscribe`."""
        async with super().subscribe(session_id) as subscription:
            assert isinstance(subscription, MemorySubscription)
            if not subscription.ended:
                await self._confirmed(f"session:{session_id}")
                subscription._changes_seen = subscription.topic.changes
            yield subscription

    async def _confirmed(self, channel: str) -> None:
        subscriber, name = self._connection.subscriber, self._connection.name(channel)
        await eventually(lambda: subscriber.is_subscribed(name))
