"""Following a session while its store is unavailable or ahead of the feed."""

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


class ObservedStore(MemoryStore):
    """A store that reports when a read has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.read_failed = asyncio.Event()

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        try:
            return await super().read(session_id, after=after, limit=limit, max_bytes=max_bytes)
        except StoreUnavailable:
            self.read_failed.set()
            raise


async def store_title(store: MemoryStore, title: str) -> None:
    await store.commit("s", Commit(timestamp=1, events=[TitleEvent(title=title)]))


async def test_follow_while_store_is_unavailable_waits_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.01)
    store, feed = ObservedStore(), MemoryFeed(single_process=False)
    await store.create("s", owner="me", at=1)
    await store_title(store, "before")
    store.trouble = "away"
    items = EventStreams(store, feed).follow("s", after=0)
    first = asyncio.ensure_future(anext(items))
    await store.read_failed.wait()
    assert not first.done()
    store.trouble = None
    found = await first
    assert isinstance(found, Sequence)
    assert [record.number for record in found] == [1]
    await items.aclose()


async def test_follow_while_store_is_unavailable_ends_at_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 60)
    store, feed = ObservedStore(), MemoryFeed(single_process=False)
    await store.create("s", owner="me", at=1)
    store.trouble = "away"
    items = EventStreams(store, feed).follow("s", after=0)
    first = asyncio.ensure_future(anext(items))
    await store.read_failed.wait()
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await first


async def test_follow_session_deleted_while_store_was_unavailable_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.01)
    store = ObservedStore()
    await store.create("s", owner="me", at=1)
    store.trouble = "away"
    items = EventStreams(store, MemoryFeed(single_process=False)).follow("s", after=0)
    first = asyncio.ensure_future(anext(items))
    await store.read_failed.wait()
    store.trouble = None
    await store.delete("s", owner="me")
    with pytest.raises(NotFound):
        await first


async def test_subscriber_that_read_the_message_before_its_publication_receives_no_text_of_it() -> None:
    unpublished: list[Sequence[EventRecord]] = []
    store, feed = MemoryStore(on_committed=lambda _, records: unpublished.append(records)), MemoryFeed()
    await store.create("s", owner="me", at=1)
    await store_title(store, "before")
    feed.publish("s", unpublished.pop())
    feed.publish_delta("s", TextDelta("m", "Hello"))
    await store.commit("s", Commit(timestamp=1, events=[MessageEvent(role="assistant", content="Hello")]))
    items = EventStreams(store, feed).follow("s", after=0)
    found = await anext(items)
    assert isinstance(found, Sequence)
    assert [record.type for record in found] == ["title", "message"]
    assert await anext(items) == (), "caught up, without text of the stored message"
    feed.publish("s", unpublished.pop())
    feed.publish_delta("s", TextDelta("n", "More"))
    assert await anext(items) == TextDelta("n", "More")
    await items.aclose()
