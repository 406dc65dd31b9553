"""Following a session while its store comes and goes."""

import asyncio
from collections.abc import Sequence

import pytest

from app.application.services import streams
from app.application.services.streams import EventStreams
from app.domain.errors import NotFound, StoreUnavailable
from app.domain.models.event import EventRecord, MessageEvent, TextDelta, TitleEvent
from app.domain.repositories.event_log import Commit
from app.infrastructure.streams.memory import MemoryFeed
from tests.fakes.memory_store import MemoryStore


class WatchedStore(MemoryStore):
    """Says when a read has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = asyncio.Event()

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        try:
            return await super().read(session_id, after=after, limit=limit)
        except StoreUnavailable:
            self.failed.set()
            raise


async def write(store: MemoryStore, title: str) -> None:
    await store.commit("s", Commit(timestamp=1, events=[TitleEvent(title=title)]))


async def test_a_follower_waits_for_a_store_that_is_away_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.01)
    store, feed = WatchedStore(), MemoryFeed(alone=False)
    await store.create("s", owner="me", at=1)
    await write(store, "before")
    store.trouble = "away"
    items = EventStreams(store, feed).follow("s", after=0)
    first = asyncio.ensure_future(anext(items))
    await store.failed.wait()
    assert not first.done()
    store.trouble = None
    found = await first
    assert isinstance(found, Sequence)
    assert [record.number for record in found] == [1]
    await items.aclose()


async def test_a_follower_of_a_store_that_is_away_ends_with_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 60)
    store, feed = WatchedStore(), MemoryFeed(alone=False)
    await store.create("s", owner="me", at=1)
    store.trouble = "away"
    items = EventStreams(store, feed).follow("s", after=0)
    first = asyncio.ensure_future(anext(items))
    await store.failed.wait()
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await first


async def test_a_session_that_was_deleted_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.01)
    store = WatchedStore()
    await store.create("s", owner="me", at=1)
    store.trouble = "away"
    items = EventStreams(store, MemoryFeed(alone=False)).follow("s", after=0)
    first = asyncio.ensure_future(anext(items))
    await store.failed.wait()
    store.trouble = None
    await store.delete("s", owner="me")
    with pytest.raises(NotFound):
        await first


async def test_who_comes_between_a_message_and_its_news_is_not_shown_how_it_was_written() -> None:
    untold: list[Sequence[EventRecord]] = []
    store, feed = MemoryStore(on_committed=lambda _, records: untold.append(records)), MemoryFeed()
    await store.create("s", owner="me", at=1)
    await write(store, "before")
    feed.publish("s", untold.pop())
    feed.publish_delta("s", TextDelta("m", "Hello"))
    await store.commit("s", Commit(timestamp=1, events=[MessageEvent(role="assistant", content="Hello")]))
    items = EventStreams(store, feed).follow("s", after=0)
    found = await anext(items)
    assert isinstance(found, Sequence)
    assert [record.type for record in found] == ["title", "message"]
    assert await anext(items) == (), "caught up, with nothing more of the message"
    feed.publish("s", untold.pop())
    feed.publish_delta("s", TextDelta("n", "More"))
    assert await anext(items) == TextDelta("n", "More")
    await items.aclose()
