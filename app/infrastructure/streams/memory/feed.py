"""The feed inside one process: what was stored last, what is being written now, and who wants to know."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from app.domain.external.feed import Subscription
from app.domain.models.event import LISTED, TERMINAL, EventRecord, TextDelta
from app.infrastructure.streams.memory.topics import Follower, Topic, Writing

_HEADS = 4096
"""Sessions whose newest number is remembered; for others a follower asks the event_log."""

ENDS_TEXT = TERMINAL | {"message"}
"""Types of events after which nothing more comes of the message that was being written."""


class _Following(AbstractAsyncContextManager[Subscription]):
    """The time during which one reader follows a session."""

    def __init__(self, feed: "MemoryFeed", session_id: str) -> None:
        self._feed = feed
        self._session_id = session_id
        self._follower: Follower | None = None

    async def __aenter__(self) -> Subscription:
        self._follower = self._feed.enter(self._session_id)
        return self._follower

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._follower is not None:
            self._feed.leave(self._session_id, self._follower)


class MemoryFeed:
    """A `Feed` (see there) for one process. Every method but the two that wait belongs on the event loop's thread.

    A session's records are kept only while somebody follows it, and then bounded in number and in bytes.

    `alone`: nobody writes to the store but this process, so that what was published here is all there is. Where others
    write too, whoever hears of them says so with `deliver` and `doubt`.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self._alone = alone
        self._topics: dict[str, Topic] = {}
        self._writing: dict[str, Writing] = {}
        self._heads: OrderedDict[str, int] = OrderedDict()
        self._version = 1  # above the 0 with which a follower begins
        self._list_changed = asyncio.Event()
        self._closed = False

    @property
    def followers(self) -> int:
        """How many readers follow sessions."""
        return sum(len(topic.followers) for topic in self._topics.values())

    @property
    def followed(self) -> Collection[str]:
        """The sessions that somebody follows."""
        return self._topics.keys()

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """See `Feed.publish`."""
        if any(record.type in ENDS_TEXT for record in records):
            # The whole message is there, or the run that wrote it is over: pieces of it after that would confuse.
            self.end_delta(session_id)
        self.deliver(session_id, records)
        if any(record.type in LISTED for record in records):
            self.notify_list_changed()

    def deliver(self, session_id: str, records: Sequence[EventRecord]) -> bool:
        """Pass `records` on to the session's followers and to nobody else; what is known already is left out.

        False when records are missing between what is known and `records`.
        """
        known = self._head(session_id)
        if records and records[0].number <= known:
            records = [record for record in records if record.number > known]
        if not records:
            return True
        self._remember(session_id, records[-1].number)
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.add(records)
            topic.wake()
        return not known or records[0].number == known + 1

    def doubt(self, session_id: str) -> None:
        """The store may hold more than was published here: followers ask it once."""
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.doubts += 1
            topic.wake()

    def doubt_below(self, session_id: str, head: int) -> bool:
        """The store holds everything up to `head`. Answers whether that is more than was published here."""
        if head <= self._head(session_id):
            return False
        self._remember(session_id, head)
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.skip_to(head)
        self.doubt(session_id)
        return True

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """See `Feed.publish_delta`."""
        topic = self._topics.get(session_id)
        writing = self._writing.get(session_id)
        if writing is None or writing.message_id != delta.message_id:
            writing = self._writing[session_id] = Writing(delta.message_id)
            if topic is not None:
                topic.writing = writing
        writing.pieces.append(delta.delta)
        if topic is not None:
            topic.wake()

    def end_delta(self, session_id: str) -> None:
        """See `Feed.end_delta`."""
        self._writing.pop(session_id, None)
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.writing = None

    def written(self, session_id: str) -> Writing | None:
        """The message that is being written."""
        return self._writing.get(session_id)

    def resume(self, session_id: str, writing: Writing) -> None:
        """`writing` is, or is again, the message that is being written; readers keep their places in it."""
        self._writing[session_id] = writing
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.writing = writing
            topic.wake()

    def notify_list_changed(self) -> None:
        """See `Feed.notify_list_changed`."""
        self._version += 1
        # A new event for the next version: the waiters of this one need not be awake before it is set again.
        changed, self._list_changed = self._list_changed, asyncio.Event()
        changed.set()

    def close_session(self, session_id: str) -> None:
        """See `Feed.close_session`."""
        self._writing.pop(session_id, None)
        self._heads.pop(session_id, None)
        topic = self._topics.pop(session_id, None)
        if topic is not None:
            for follower in topic.followers:
                follower.end()

    def subscribe(self, session_id: str) -> AbstractAsyncContextManager[Subscription]:
        """See `Feed.subscribe`."""
        return _Following(self, session_id)

    async def sessions_changed(self, seen: int) -> int | None:
        """See `Feed.sessions_changed`."""
        while self._version <= seen and not self._closed:
            await self._list_changed.wait()
        return None if self._closed else self._version

    def close(self) -> None:
        """See `Feed.close`."""
        self._closed = True
        for session_id in list(self._topics):
            self.close_session(session_id)
        self.notify_list_changed()

    def enter(self, session_id: str) -> Follower:
        """A new follower of the session; pair it with `leave`."""
        topic = self._topics.get(session_id)
        if topic is None:
            topic = Topic(self._heads.get(session_id, 0), self._writing.get(session_id))
            if not self._closed:
                self._topics[session_id] = topic
        follower = Follower(topic, sure=self._alone, ended=self._closed)
        topic.followers.add(follower)
        return follower

    def leave(self, session_id: str, follower: Follower) -> None:
        """The follower goes; with the last one goes what was kept for them."""
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.followers.discard(follower)
            if not topic.followers:
                del self._topics[session_id]

    def _head(self, session_id: str) -> int:
        topic = self._topics.get(session_id)
        return self._heads.get(session_id, 0) if topic is None else topic.head

    def _remember(self, session_id: str, head: int) -> None:
        self._heads[session_id] = head
        self._heads.move_to_end(session_id)
        if len(self._heads) > _HEADS:
            self._heads.popitem(last=False)
