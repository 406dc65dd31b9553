"""A session that is followed: the newest records, the message that is being written, and the readers' places."""

import asyncio
from collections.abc import Sequence

from app.domain.models.event import EventRecord, TextDelta

_TAIL_RECORDS = 512
_TAIL_BYTES = 2 * 2**20


class Writing:
    """A message that the agent is writing: its pieces, kept once for all readers. `heard`: in another process."""

    __slots__ = ("heard", "message_id", "pieces")

    def __init__(self, message_id: str, *, heard: bool = False) -> None:
        self.message_id = message_id
        self.heard = heard
        self.pieces: list[str] = []


class Topic:
    """A session that somebody follows. The tail's numbers run without gaps up to `head`; `head` 0 is unknown.

    `doubts` counts the moments at which the store may have held more than was told here: after each of them a follower
    that has everything asks the event_log once.
    """

    __slots__ = ("doubts", "followers", "head", "size", "tail", "writing")

    def __init__(self, head: int, writing: Writing | None) -> None:
        self.head = head
        self.doubts = 0
        self.writing = writing
        self.tail: list[EventRecord] = []
        self.size = 0
        self.followers: set[Follower] = set()

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

    def skip_to(self, head: int) -> None:
        """There are records up to `head` that were not told here."""
        self.head, self.tail, self.size = head, [], 0

    def records_after(self, number: int) -> Sequence[EventRecord] | None:
        """See `Subscription.records_after`."""
        if self.head and number >= self.head:
            return ()
        if not self.tail or number + 1 < self.tail[0].number:
            return None
        return self.tail[number + 1 - self.tail[0].number :]

    def wake(self) -> None:
        """Something changed for every follower."""
        for follower in self.followers:
            follower.woken.set()


class Follower:
    """A `Subscription`."""

    __slots__ = ("_asked", "_began", "_position", "_read", "_sure", "_topic", "_writing", "ended", "woken")

    def __init__(self, topic: Topic, *, sure: bool, ended: bool) -> None:
        self._topic = topic
        self._sure = sure
        self._asked = topic.doubts if sure else -1
        self._read = 0
        self._writing: Writing | None = None
        self._began = 0
        self._position = 0
        self.woken = asyncio.Event()
        self.ended = False
        if ended:
            self.end()

    def records_after(self, number: int) -> Sequence[EventRecord] | None:
        """See `Subscription.records_after`."""
        self._read = number
        found = self._topic.records_after(number)
        if found is None or (not found and self._asked != self._topic.doubts):
            self._asked = self._topic.doubts
            return None
        return found

    def next_delta(self) -> TextDelta | None:
        """See `Subscription.next_delta`."""
        writing = self._topic.writing
        if writing is None:
            return None
        if writing is not self._writing:
            self._writing, self._position = writing, 0
            # With several writers the news may be behind for long, and for other reasons than this message.
            self._began = min(self._read, self._topic.head) if self._sure and self._topic.head else self._read
        if self._position == len(writing.pieces):
            return None
        if self._read > max(self._began, self._topic.head):
            return None  # the event_log was ahead of the news: the whole message may be in what it gave
        added = "".join(writing.pieces[self._position :])
        self._position = len(writing.pieces)
        return TextDelta(writing.message_id, added)

    async def wait_for_change(self) -> bool:
        """See `Subscription.wait_for_change`."""
        await self.woken.wait()
        if self.ended:
            return False
        self.woken.clear()
        return True

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self.woken.set()
