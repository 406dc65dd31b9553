"""The feed of a process among several: it polls the store for events that other processes write."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Self

from app.domain.errors import StoreUnavailable
from app.infrastructure.streams.memory import MemoryFeed, MemorySubscription

log = logging.getLogger(__name__)

LastEventNumbers = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""`SessionRepository.last_event_numbers`."""

_TICK_SECONDS = 0.25
"""Time between two ticks, at which polls may be due."""

_POLL_TICKS = 1
_NOTIFIED_POLL_TICKS = 8
"""Number of ticks between two polls for new events: without notifications from other processes, and with them."""

_LIST_POLL_TICKS = 4
_NOTIFIED_LIST_POLL_TICKS = 20
"""The same for the list of sessions."""

_POLL_TIMEOUT_SECONDS = 5.0
"""Maximum duration of one poll."""


class PollingFeed(MemoryFeed):
    """A `Feed` for one of several processes that share only the store. Open it with `async with`.

    Subscribers receive the complete messages of other processes but not their deltas. A poll is one read of the store
    for all sessions that have subscribers; without subscribers there are no polls.

    Args:
        last_event_numbers: Returns the last event numbers of sessions; deleted sessions are absent.
    """

    def __init__(self, last_event_numbers: LastEventNumbers) -> None:
        super().__init__(single_process=False)
        self._last_event_numbers = last_event_numbers
        self._list_waiters = 0
        self._poll_needed = asyncio.Event()
        self._poll_task: asyncio.Task[None] | None = None

    @property
    def is_notified(self) -> bool:
        """Whether other processes currently notify this one of what they write."""
        return False

    async def __aenter__(self) -> Self:
        self._poll_task = asyncio.create_task(self._poll_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        if self._poll_task is not None:
            self._poll_task.cancel()
            await asyncio.gather(self._poll_task, return_exceptions=True)

    def end_subscriptions(self, session_id: str) -> None:
        """End the session's subscriptions in this process."""
        super().end_subscriptions(session_id)
        self._on_unsubscribed(session_id)

    @asynccontextmanager
    async def subscribe(self, session_id: str) -> AsyncGenerator[MemorySubscription, None]:
        """Implement `Feed.subscribe`."""
        try:
            async with super().subscribe(session_id) as subscription:
                if not subscription.ended:
                    self._poll_needed.set()
                    self._on_subscribed(session_id)
                yield subscription
        finally:
            if session_id not in self.subscribed_sessions:
                self._on_unsubscribed(session_id)

    async def sessions_changed(self, seen: int) -> int | None:
        """Implement `Feed.sessions_changed`."""
        self._list_waiters += 1
        self._poll_needed.set()
        try:
            return await super().sessions_changed(seen)
        finally:
            self._list_waiters -= 1

    def _on_subscribed(self, session_id: str) -> None:
        """Note that the session has one more subscriber."""

    def _on_unsubscribed(self, session_id: str) -> None:
        """Note that the session has no subscribers. May be called repeatedly."""

    def _on_stale(self, session_id: str) -> None:
        """Note that a poll found events that this process was not notified of."""

    async def _poll_forever(self) -> None:
        for tick in count(1):
            await self._poll_needed.wait()
            await asyncio.sleep(_TICK_SECONDS)
            sessions = list(self.subscribed_sessions)
            if not sessions and not self._list_waiters:
                self._poll_needed.clear()
            if sessions and tick % (_NOTIFIED_POLL_TICKS if self.is_notified else _POLL_TICKS) == 0:
                await self._poll(sessions)
            if self._list_waiters and tick % (_NOTIFIED_LIST_POLL_TICKS if self.is_notified else _LIST_POLL_TICKS) == 0:
                self.wake_list_readers()

    async def _poll(self, sessions: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(_POLL_TIMEOUT_SECONDS):
                last_numbers = await self._last_event_numbers(sessions)
        except (StoreUnavailable, TimeoutError):
            return  # Reads of the event log report the failure to their callers; the next poll may succeed.
        except Exception:  # The root of the task: a programming error in one poll must not stop the polling.
            log.exception("polling the store for new events failed")
            return
        for session_id in sessions:
            last_number = last_numbers.get(session_id)
            if last_number is None:
                self.end_subscriptions(session_id)
            elif session_id in self.subscribed_sessions and self.mark_stale_below(session_id, last_number):
                self._on_stale(session_id)
