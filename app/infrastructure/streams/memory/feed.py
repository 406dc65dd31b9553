"""The feed inside one process: what was stored last, what is being written now, and who wants to know."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from app.domain.external.feed import Subscription
from app.domain.models.event import TERMINAL, EventRecord, TextDelta

_TAIL_RECORDS = 512
_TAIL_BYTES = 2 * 2**20
_HEADS = 4096
"""Sessions whose newest number is remembered; for others a follower asks the journal."""

_ENDS_TEXT = TERMINAL | {"message"}
"""Types of events after which nothing more comes of the message that was being written."""

_LISTED = TERMINAL | {"message", "title"}
"""Types of events that change the list of sessions."""


class _Writing:
    """The message that the agent is writing: its pieces, kept once for all readers."""

    __slots__ = ("message_id", "pieces")

    def __init__(self, message_id: str) -> None:
        self.message_id = message_id
        self.pieces: list[str] = []


class _Topic:
    """A session that somebody follows. The tail's numbers run without gaps up to `head`; `head` 0 is unknown."""

    __slots__ = ("followers", "head", "size", "tail", "writing")

    def __init__(self, head: int, writing: _Writing | None) -> None:
        self.head = head
        self.writing = writing
        self.tail: list[EventRecord] = []
        self.size = 0
        self.followers: set[_Follower] = set()

    def add(self, records: Sequence[EventRecord]) -> None:
        """Take newly stored `records` into the tail, and let go of the oldest beyond its bounds."""
        if self.tail and records[0].number != self.head + 1:
            self.tail, self.size = [], 0
        self.tail.extend(records)
        self.size += sum(len(record.data) for record in records)
        self.head = records[-1].number
        surplus = max(0, len(self.tail) - _TAIL_RECORDS)
        self.size -= sum(len(record.data) for record in self.tail[:surplus])
        while self.size > _TAIL_BYTES:
            self.size -= len(self.tail[surplus].data)
            surplus += 1
        del self.tail[:surplus]

    def since(self, number: int) -> Sequence[EventRecord] | None:
        """See `Subscription.since`."""
        if self.head and number >= self.head:
            return ()
        if not self.tail or number + 1 < self.tail[0].number:
            return None
        return self.tail[number + 1 - self.tail[0].number :]

    def wake(self) -> None:
        """Something changed for every follower."""
        for follower in self.followers:
            follower.woken.set()


class _Follower:
    """A `Subscription`."""

    __slots__ = ("_position", "_topic", "_writing", "ended", "woken")

    def __init__(self, topic: _Topic, *, ended: bool) -> None:
        self._topic = topic
        self._writing: _Writing | None = None
        self._position = 0
        self.woken = asyncio.Event()
        self.ended = False
        if ended:
            self.end()

    def since(self, number: int) -> Sequence[EventRecord] | None:
        """See `Subscription.since`."""
        return self._topic.since(number)

    def text(self) -> TextDelta | None:
        """See `Subscription.text`."""
        writing = self._topic.writing
        if writing is not self._writing:
            self._writing, self._position = writing, 0
        if writing is None or self._position == len(writing.pieces):
            return None
        added = "".join(writing.pieces[self._position :])
        self._position = len(writing.pieces)
        return TextDelta(writing.message_id, added)

    async def changed(self) -> bool:
        """See `Subscription.changed`."""
        await self.woken.wait()
        if self.ended:
            return False
        self.woken.clear()
        return True

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self.woken.set()


class _Following(AbstractAsyncContextManager[Subscription]):
    """The time during which one reader follows a session."""

    def __init__(self, feed: "MemoryFeed", session_id: str) -> None:
        self._feed = feed
        self._session_id = session_id
        self._follower: _Follower | None = None

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
    """

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}
        self._writing: dict[str, _Writing] = {}
        self._heads: OrderedDict[str, int] = OrderedDict()
        self._version = 1  # above the 0 with which a follower begins
        self._list_changed = asyncio.Event()
        self._closed = False

    @property
    def followers(self) -> int:
        """How many readers follow sessions."""
        return sum(len(topic.followers) for topic in self._topics.values())

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """See `Feed.publish`."""
        if not records:
            return
        self._heads[session_id] = records[-1].number
        self._heads.move_to_end(session_id)
        if len(self._heads) > _HEADS:
            self._heads.popitem(last=False)
        if any(record.type in _ENDS_TEXT for record in records):
            # The whole message is there, or the run that wrote it is over: pieces of it after that would confuse.
            self.retract(session_id)
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.add(records)
            topic.wake()
        if any(record.type in _LISTED for record in records):
            self.touch()

    def write(self, session_id: str, delta: TextDelta) -> None:
        """See `Feed.write`."""
        topic = self._topics.get(session_id)
        writing = self._writing.get(session_id)
        if writing is None or writing.message_id != delta.message_id:
            writing = self._writing[session_id] = _Writing(delta.message_id)
            if topic is not None:
                topic.writing = writing
        writing.pieces.append(delta.delta)
        if topic is not None:
            topic.wake()

    def retract(self, session_id: str) -> None:
        """See `Feed.retract`."""
        self._writing.pop(session_id, None)
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.writing = None

    def touch(self) -> None:
        """See `Feed.touch`."""
        self._version += 1
        # A new event for the next version: the waiters of this one need not be awake before it is set again.
        changed, self._list_changed = self._list_changed, asyncio.Event()
        changed.set()

    def drop(self, session_id: str) -> None:
        """See `Feed.drop`."""
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
            self.drop(session_id)
        self.touch()

    def enter(self, session_id: str) -> _Follower:
        """A new follower of the session; pair it with `leave`."""
        topic = self._topics.get(session_id)
        if topic is None:
            topic = _Topic(self._heads.get(session_id, 0), self._writing.get(session_id))
            if not self._closed:
                self._topics[session_id] = topic
        follower = _Follower(topic, ended=self._closed)
        topic.followers.add(follower)
        return follower

    def leave(self, session_id: str, follower: _Follower) -> None:
        """The follower goes; with the last one goes what was kept for them."""
        topic = self._topics.get(session_id)
        if topic is not None:
            topic.followers.discard(follower)
            if not topic.followers:
                del self._topics[session_id]
