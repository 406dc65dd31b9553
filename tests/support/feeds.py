"""Feeds of several processes over one store, and a reader that follows a session as a stream does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, cast

from app.application.services.streams import EventStreams
from app.domain.errors import NotFound, StoreUnavailable
from app.domain.external.feed import Feed, Subscription
from app.domain.models.event import EventRecord, TextDelta
from app.domain.repositories.event_log import EventLog
from app.infrastructure.streams.memory import MemoryFeed
from app.infrastructure.streams.polling import PollingFeed
from app.infrastructure.streams.redis import RedisBus, RedisFeed
from tests.support.redis_server import RedisServer

SECONDS = 15
"""For what must happen soon: much more than it takes, for a loaded machine."""


async def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def record(number: int, kind: str = "step", size: int = 10) -> EventRecord:
    return EventRecord(number, kind, b"x" * size)


def records(first: int, last: int) -> list[EventRecord]:
    return [record(number) for number in range(first, last + 1)]


class Store:
    """The events of sessions, as all processes see them."""

    def __init__(self) -> None:
        self.events: dict[str, list[EventRecord]] = {"s": [], "t": []}
        self.away = False
        self.silent = False
        """Whether a look finds nothing new, so that a reader has to hear of it in another way."""
        self.reads = 0
        self.looks = 0

    def add(self, session_id: str = "s", kind: str = "step", size: int = 10) -> EventRecord:
        events = self.events[session_id]
        events.append(record(len(events) + 1, kind, size))
        return events[-1]

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        self.reads += 1
        if session_id not in self.events:
            raise NotFound("no such session")
        return self.events[session_id][after : after + limit]

    async def heads(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        self.looks += 1
        if self.away:
            raise StoreUnavailable("away")
        return {found: len(self.events[found]) * (not self.silent) for found in session_ids if found in self.events}


class Reader:
    """Follows a session and keeps what it got."""

    def __init__(self, store: Store, feed: Feed, session_id: str, after: int = 0) -> None:
        self._streams = EventStreams(cast("EventLog", store), feed)
        self._session_id = session_id
        self._after = after
        self.numbers: list[int] = []
        self.texts: dict[str, str] = {}
        self.got: list[str] = []
        """What came in its order: the type of a record, or `text`."""
        self.rested = 0
        """How often it had everything and waited."""
        self.ended = False

    async def read(self) -> None:
        async for item in self._streams.follow(self._session_id, after=self._after):
            if isinstance(item, TextDelta):
                self.got.append("text")
                self.texts[item.message_id] = self.texts.get(item.message_id, "") + item.delta
            elif item:
                self.got += [found.type for found in item]
                self.numbers += [found.number for found in item]
            else:
                self.rested += 1
        self.ended = True


class Process:
    """One of many processes: its feed, and its readers."""

    def __init__(self, store: Store, feed: PollingFeed, bus: RedisBus | None) -> None:
        self.store = store
        self.feed = feed
        self._bus = bus
        self._readers: list[asyncio.Task[None]] = []

    @property
    def bus(self) -> RedisBus:
        assert self._bus is not None
        return self._bus

    async def attend(self, session_id: str = "s", after: int = 0) -> Reader:
        """A reader that waits for news."""
        reader = Reader(self.store, self.feed, session_id, after)
        self._readers.append(asyncio.create_task(reader.read()))
        await until(lambda: reader.rested > 0)
        return reader

    async def follow(self, session_id: str = "s") -> Reader:
        """A reader that waits for news, and of whose waiting the other processes know."""
        reader = await self.attend(session_id)
        if self._bus is not None and self._bus.connected:
            await until(lambda: self.bus.confirmed(f"session:{session_id}"))
        return reader

    def publish(self, *added: EventRecord, session_id: str = "s") -> None:
        self.feed.publish(session_id, added)

    def write(self, text: str, message_id: str = "m") -> None:
        self.feed.publish_delta("s", TextDelta(message_id, text))

    async def end(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


@asynccontextmanager
async def processes(count: int, store: Store, server: RedisServer | None) -> AsyncIterator[list[Process]]:
    """`count` processes over one Redis, or none."""
    async with AsyncExitStack() as stack:
        opened: list[Process] = []
        for _ in range(count):
            hub = MemoryFeed(alone=False)
            bus = None
            if server is not None:
                bus = await stack.enter_async_context(RedisBus(server.url, prefix="test"))
            feed = PollingFeed(hub, store.heads) if bus is None else RedisFeed(hub, bus, store.heads)
            await stack.enter_async_context(feed)
            opened.append(Process(store, feed, bus))
            stack.push_async_callback(opened[-1].end)
        yield opened


class Settled(RedisFeed):
    """Its subscriptions begin when Redis has confirmed them: until then readers are woken once more than they need."""

    def subscribe(self, session_id: str) -> AbstractAsyncContextManager[Subscription]:
        return self._settled(session_id)

    async def settle(self) -> None:
        """The same for the list."""
        await self.sessions_changed(0)
        await until(lambda: self._bus.confirmed("sessions"))

    @asynccontextmanager
    async def _settled(self, session_id: str) -> AsyncIterator[Subscription]:
        async with super().subscribe(session_id) as subscription:
            follower: Any = subscription
            if not follower.ended:
                await until(lambda: self._bus.confirmed(f"session:{session_id}"))
                follower.woken.clear()
            yield subscription
