"""The feed of one of many processes that tell one another through Redis what they write."""

import asyncio
from collections.abc import Sequence
from functools import partial

from app.domain.models.event import TERMINAL, EventRecord, TextDelta
from app.infrastructure.streams.memory.feed import ENDS_TEXT, LISTED, MemoryFeed
from app.infrastructure.streams.polling import Heads, PollingFeed
from app.infrastructure.streams.redis.bus import RedisBus
from app.infrastructure.streams.redis.frames import Dropped, News, Records, Retracted, Text, decode, encode
from app.infrastructure.streams.redis.texts import HeardText, SentTexts, channel

_LIST = "sessions"

_LIST_LINGER_SECONDS = 30.0
"""A reader of the list reads a page between two waits: its channel is kept for so long without one."""


class RedisFeed(PollingFeed):
    """A `Feed` (see there). Followers in this process hear of what is written here through the hub at once, of what is
    written elsewhere through Redis, records included, and of what was lost there from the store.

    A session's channel is subscribed to only while somebody here follows the session.
    """

    def __init__(self, hub: MemoryFeed, bus: RedisBus, heads: Heads) -> None:
        super().__init__(hub, heads)
        self._bus = bus
        self._sent = SentTexts(hub, bus)
        self._texts: dict[str, HeardText] = {}
        self._list_subscribed = False
        self._list_leaving: asyncio.TimerHandle | None = None
        bus.add_source(self._sent)

    @property
    def told(self) -> bool:
        """See `PollingFeed.told`."""
        return self._bus.connected

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """See `Feed.publish`."""
        if self._closed or not records:
            return
        super().publish(session_id, records)
        types = {record.type for record in records}
        self._bus.publish(channel(session_id), encode(Records(records)))
        if types & TERMINAL:
            self._sent.changed(session_id)  # also what a worker that died has left in Redis
            if session_id in self._texts:
                self._texts[session_id].end()
        elif types & ENDS_TEXT:
            self._sent.retracted(session_id)
        if types & LISTED:
            self._bus.tell(_LIST)

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """See `Feed.publish_delta`."""
        if not self._closed:
            super().publish_delta(session_id, delta)
            self._sent.changed(session_id)

    def end_delta(self, session_id: str) -> None:
        """See `Feed.end_delta`."""
        super().end_delta(session_id)
        self._sent.retracted(session_id)

    def notify_list_changed(self) -> None:
        """See `Feed.notify_list_changed`."""
        if not self._closed:
            super().notify_list_changed()
            self._bus.tell(_LIST)

    def close_session(self, session_id: str) -> None:
        """See `Feed.close_session`."""
        super().close_session(session_id)
        if not self._closed:
            self._bus.publish(channel(session_id), encode(Dropped()))
            self._sent.changed(session_id)

    async def sessions_changed(self, seen: int) -> int | None:
        """See `Feed.sessions_changed`."""
        if self._list_leaving is not None:
            self._list_leaving.cancel()
            self._list_leaving = None
        if not self._list_subscribed and not self._closed:
            self._list_subscribed = True
            self._bus.subscribe(
                _LIST,
                heard=lambda _payload, _sender: self._hub.notify_list_changed(),
                confirmed=self._hub.notify_list_changed,
            )
        try:
            return await super().sessions_changed(seen)
        finally:
            if not self._list_waiters and self._list_subscribed:
                self._list_leaving = asyncio.get_running_loop().call_later(_LIST_LINGER_SECONDS, self._leave_list)

    def close(self) -> None:
        """See `PollingFeed.close`."""
        super().close()
        for session_id in list(self._texts):
            self._left(session_id)
        self._leave_list()

    def _leave_list(self) -> None:
        self._list_subscribed = False
        self._bus.unsubscribe(_LIST)
        if self._list_leaving is not None:
            self._list_leaving.cancel()
            self._list_leaving = None

    def _entered(self, session_id: str) -> None:
        if session_id not in self._texts:
            self._texts[session_id] = HeardText(self._hub, self._bus, session_id)
            heard, confirmed = partial(self._heard, session_id), partial(self._confirmed, session_id)
            self._bus.subscribe(channel(session_id), heard=heard, confirmed=confirmed)

    def _left(self, session_id: str) -> None:
        text = self._texts.pop(session_id, None)
        if text is not None:
            self._bus.unsubscribe(channel(session_id))
            text.end()

    def _doubted(self, session_id: str) -> None:
        self._texts[session_id].look()

    def _confirmed(self, session_id: str) -> None:
        self._hub.doubt(session_id)
        self._texts[session_id].look()

    def _heard(self, session_id: str, payload: bytes, sender: bytes) -> None:
        text = self._texts[session_id]
        match decode(payload):
            case Records(records):
                self._take(session_id, records, sender)
            case News(head):
                if not head:
                    self._confirmed(session_id)
                elif self._hub.doubt_below(session_id, head):
                    text.look()
            case Text() as piece:
                text.take(piece)
            case Retracted(life):
                text.retracted(life)
            case Dropped():
                self._hub.close_session(session_id)
                self._left(session_id)

    def _take(self, session_id: str, records: Sequence[EventRecord], sender: bytes) -> None:
        text = self._texts[session_id]
        types = {record.type for record in records}
        if types & TERMINAL:
            text.end()
        elif types & ENDS_TEXT:
            # A message of somebody else may be the user's, who does not end what the agent writes: it does itself.
            text.ended(sender)
        if not self._hub.deliver(session_id, records):
            text.look()
