"""Following a session: the event_log by position, woken by the feed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from app.domain.errors import StoreUnavailable
from app.domain.external.feed import Feed, Subscription
from app.domain.models.event import EventRecord, TextDelta
from app.domain.repositories.event_log import EventLog

PAGE = 500
"""Events that a follower reads at once: what bounds the memory of a reader that is far behind."""

HISTORY_PAGE = 1_000
"""Events of a history read at once: with few readers at a time, fewer and larger reads are the better bargain."""

RETRY_SECONDS = 1.0
"""How long a follower waits for a store that is away, before it looks again."""

StreamItem = Sequence[EventRecord] | TextDelta


class EventStreams:
    """Any number of readers see the same events in the same order, each at its own pace."""

    def __init__(self, event_log: EventLog, feed: Feed) -> None:
        self._event_log = event_log
        self._feed = feed

    async def follow(self, session_id: str, *, after: int) -> AsyncGenerator[StreamItem, None]:
        """Everything with a number above `after`, in order, then what comes, for as long as the session lives.

        An empty batch says that the reader has caught up and the stream is about to wait. While the store is away the
        stream waits for it.
        """
        position = after
        async with self._feed.subscribe(session_id) as subscription:
            while True:
                records = subscription.records_after(position)
                if records is None:
                    try:
                        records = await self._event_log.read(session_id, after=position, limit=PAGE)
                    except StoreUnavailable:
                        if await _over(subscription):
                            return
                        continue
                if records:
                    position = records[-1].number
                    yield records
                    continue
                if delta := subscription.next_delta():
                    yield delta
                    continue
                yield ()
                if not await subscription.wait_for_change():
                    return

    async def replay(self, session_id: str, *, after: int, up_to: int) -> AsyncGenerator[Sequence[EventRecord], None]:
        """The stored events with `after` < number <= `up_to`, a page at a time."""
        position = after
        while position < up_to:
            records = await self._event_log.read(session_id, after=position, limit=min(HISTORY_PAGE, up_to - position))
            if not records:
                return
            position = records[-1].number
            yield records


async def _over(subscription: Subscription) -> bool:
    """Wait for something new, but not for long; answers whether nothing will come any more."""
    try:
        async with asyncio.timeout(RETRY_SECONDS):
            return not await subscription.wait_for_change()
    except TimeoutError:
        return False
