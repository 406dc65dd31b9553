"""Streams of a session's events: read from the event log by position, and continued when the feed wakes them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from app.domain.errors import StoreUnavailable
from app.domain.external.feed import Feed, Subscription
from app.domain.models.event import EventRecord, StatusDelta, TextDelta
from app.domain.repositories.event_log import EventLog

PAGE = 500
"""Maximum number of events in one read of a stream or a history."""

FOLLOW_BYTES = 64 * 2**10
"""Size at which one read of a live stream ends, in bytes. A reader that lags far behind and does not read keeps it."""

HISTORY_BYTES = 256 * 2**10
"""Size at which one read of a history ends, in bytes. Larger: few readers read histories at a time."""

RETRY_SECONDS = 1.0
"""Maximum time until a stream tries to read again from a store that was unavailable."""

StreamItem = Sequence[EventRecord] | TextDelta | StatusDelta
"""Part of a stream: records, text of a message being written, or what the run waits for."""


class EventStreams:
    """Gives any number of readers the same events in the same order, each at its own pace."""

    def __init__(self, event_log: EventLog, feed: Feed) -> None:
        self._event_log = event_log
        self._feed = feed

    async def follow(self, session_id: str, *, after: int) -> AsyncGenerator[StreamItem, None]:
        """Yield all events after number `after` in order, then new events and text until the session is deleted.

        An empty sequence means that the reader has caught up and the stream is about to wait. While the store is
        unavailable, the stream waits for it.
        """
        position = after
        async with self._feed.subscribe(session_id) as subscription:
            while True:
                records = subscription.records_after(position)
                if records is None:
                    try:
                        records = await self._event_log.read(
                            session_id, after=position, limit=PAGE, max_bytes=FOLLOW_BYTES
                        )
                    except StoreUnavailable:
                        if await _ends_before_retry(subscription):
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
        """Yield the stored events with numbers above `after` and up to `up_to`, page by page."""
        position = after
        while position < up_to:
            limit = min(PAGE, up_to - position)
            records = await self._event_log.read(session_id, after=position, limit=limit, max_bytes=HISTORY_BYTES)
            if not records:
                return
            position = records[-1].number
            yield records


async def _ends_before_retry(subscription: Subscription) -> bool:
    """Wait for a change, at most `RETRY_SECONDS`. Return whether the subscription has ended."""
    try:
        async with asyncio.timeout(RETRY_SECONDS):
            return not await subscription.wait_for_change()
    except TimeoutError:
        return False
