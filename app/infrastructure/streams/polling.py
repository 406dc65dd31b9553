"""The feed of one of many processes: what is written elsewhere is found by looking into the store."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

from app.domain.errors import StoreUnavailable
from app.domain.external.feed import Subscription
from app.domain.models.event import EventRecord, TextDelta
from app.infrastructure.streams.memory.feed import MemoryFeed

log = logging.getLogger(__name__)

Heads = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""`SessionRepository.last_event_numbers`."""

_TICK_SECONDS = 0.25
_QUICK_SECONDS, _SLOW_SECONDS = 0.25, 2.0
"""Between two looks for new events: while nothing else tells of them, and as a safety net."""

_LIST_QUICK_SECONDS, _LIST_SLOW_SECONDS = 1.0, 5.0
"""The same for the list of sessions."""

_HEADS_SECONDS = 5.0


class PollingFeed:
    """A `Feed` (see there) for one of many processes without anything between them but the store. Open it with
    `async with`; the hub is this process's own `MemoryFeed(alone=False)`.

    Text that is written in another process is not seen, only the whole message. A look costs the store one read,
    however many sessions are followed, and nothing while nobody follows any.
    """

    def __init__(self, hub: MemoryFeed, heads: Heads) -> None:
        self._hub = hub
        self._heads = heads
        self._closed = False
        self._list_waiters = 0
        self._needed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def followers(self) -> int:
        """How many readers in this process follow sessions."""
        return self._hub.followers

    @property
    def told(self) -> bool:
        """Whether other processes tell this one what they write, as far as is known."""
        return False

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """See `Feed.publish`."""
        if not self._closed:
            self._hub.publish(session_id, records)

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """See `Feed.publish_delta`."""
        if not self._closed:
            self._hub.publish_delta(session_id, delta)

    def end_delta(self, session_id: str) -> None:
        """See `Feed.end_delta`."""
        self._hub.end_delta(session_id)

    def notify_list_changed(self) -> None:
        """See `Feed.notify_list_changed`."""
        if not self._closed:
            self._hub.notify_list_changed()

    def close_session(self, session_id: str) -> None:
        """See `Feed.close_session`."""
        self._hub.close_session(session_id)
        self._left(session_id)

    def subscribe(self, session_id: str) -> AbstractAsyncContextManager[Subscription]:
        """See `Feed.subscribe`."""
        return self._following(session_id)

    async def sessions_changed(self, seen: int) -> int | None:
        """See `Feed.sessions_changed`."""
        self._list_waiters += 1
        self._needed.set()
        try:
            return await self._hub.sessions_changed(seen)
        finally:
            self._list_waiters -= 1

    def close(self) -> None:
        """See `Feed.close`. From now on nothing is published."""
        self._closed = True
        self._hub.close()

    def _entered(self, session_id: str) -> None:
        """Somebody follows the session; called for every follower."""

    def _left(self, session_id: str) -> None:
        """Nobody follows the session any more. May be called twice."""

    def _doubted(self, session_id: str) -> None:
        """The store holds more of the session than was told here."""

    @asynccontextmanager
    async def _following(self, session_id: str) -> AsyncGenerator[Subscription, None]:
        try:
            async with self._hub.subscribe(session_id) as subscription:
                if not self._closed:
                    self._needed.set()
                    self._entered(session_id)
                yield subscription
        finally:
            if session_id not in self._hub.followed:
                self._left(session_id)

    async def _watch(self) -> None:
        """Look into the store again and again while somebody follows something."""
        now = asyncio.get_running_loop().time
        looked = touched = now()
        while True:
            await self._needed.wait()
            await asyncio.sleep(_TICK_SECONDS)
            if not self._hub.followed and not self._list_waiters:
                self._needed.clear()
                continue
            if self._hub.followed and now() - looked >= (_SLOW_SECONDS if self.told else _QUICK_SECONDS):
                await self._look()
                looked = now()
            if self._list_waiters and now() - touched >= (_LIST_SLOW_SECONDS if self.told else _LIST_QUICK_SECONDS):
                self._hub.notify_list_changed()
                touched = now()

    async def _look(self) -> None:
        sessions = list(self._hub.followed)
        try:
            async with asyncio.timeout(_HEADS_SECONDS):
                heads = await self._heads(sessions)
        except (StoreUnavailable, TimeoutError):
            return  # the store says so itself to whoever asks; the next look may be luckier
        except Exception:  # the root of a look: a fault in one must not end those that follow
            log.exception("a look for new events failed")
            return
        for session_id in sessions:
            head = heads.get(session_id)
            if head is None:
                self._hub.close_session(session_id)
                self._left(session_id)
            elif session_id in self._hub.followed and self._hub.doubt_below(session_id, head):
                self._doubted(session_id)
