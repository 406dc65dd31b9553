"""The feed and the signals inside one process."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.domain.external.signals import Signal
from app.domain.models.event import LISTED, TERMINAL, EventRecord, StatusDelta, TextDelta

MAX_TAIL_RECORDS = 512
"""Maximum number of newest records kept for the subscribers of a session."""

MAX_TAIL_BYTES = 2 * 2**20
"""Maximum size of these records."""

_MAX_REMEMBERED_SESSIONS = 4096
"""Maximum number of sessions whose last event number is remembered."""

TEXT_ENDING_TYPES = TERMINAL | {"message"}
"""Types of events that end the message being written."""


@dataclass(slots=True, eq=False)
class PartialMessage:
    """The text so far of a message being written, stored once for all subscribers.

    `is_remote` is true if another process writes the message.
    """

    message_id: str
    is_remote: bool = False
    pieces: list[str] = field(default_factory=list[str])


@dataclass(slots=True, eq=False)
class Topic:
    """A session with subscribers: its newest records and the message being written.

    The event numbers in `tail` have no gaps and end at `last_number`, which is 0 while it is unknown. `stale_marks`
    counts the moments at which the event log may have held more than was published here. After each of them, a
    subscriber that has everything reads the event log once.
    """

    last_number: int
    partial_message: PartialMessage | None
    status: StatusDelta | None = None
    stale_marks: int = 0
    tail: list[EventRecord] = field(default_factory=list[EventRecord])
    size: int = 0
    subscriptions: "set[MemorySubscription]" = field(default_factory=set["MemorySubscription"])
    changes: int = 0
    """Number of calls of `wake`."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the next call of `wake`. Only subscribers that wait at that moment cost time then."""

    def add(self, records: Sequence[EventRecord]) -> None:
        """Append stored `records` to the tail and drop its oldest records beyond the limits."""
        if self.tail and records[0].number != self.last_number + 1:
            self.tail, self.size = [], 0
        self.tail.extend(records)
        self.size += sum(len(record.data) for record in records)
        self.last_number = records[-1].number
        self.status = None
        surplus = 0
        while len(self.tail) - surplus > MAX_TAIL_RECORDS or self.size > MAX_TAIL_BYTES:
            self.size -= len(self.tail[surplus].data)
            surplus += 1
        del self.tail[:surplus]

    def skip_to(self, last_number: int) -> None:
        """Drop the tail: records up to `last_number` exist that were not published here."""
        self.last_number, self.tail, self.size = last_number, [], 0

    def records_after(self, number: int) -> Sequence[EventRecord] | None:
        """Return the records after `number`, or None if the tail does not reach back that far."""
        if self.last_number and number >= self.last_number:
            return ()
        if not self.tail or number + 1 < self.tail[0].number:
            return None
        return self.tail[number + 1 - self.tail[0].number :]

    def wake(self) -> None:
        """Wake every subscriber."""
        self.changes += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


@dataclass(slots=True, eq=False)
class MemorySubscription:
    """A `Subscription`. It reads the records and the text that its topic keeps for all subscribers."""

    topic: Topic
    single_process: bool
    ended: bool = False
    position: int = 0
    """Number of the last event that the subscriber has."""
    _checked_marks: int = field(init=False)
    _changes_seen: int = field(init=False)
    _partial_message: PartialMessage | None = None
    _pieces_read: int = 0
    _text_position: int = 0
    _status: StatusDelta | None = field(init=False)

    def __post_init__(self) -> None:
        self._status, self._changes_seen = self.topic.status, self.topic.changes
        self._checked_marks = self.topic.stale_marks if self.single_process else -1

    def records_after(self, number: int) -> Sequence[EventRecord] | None:
        """Implement `Subscription.records_after`."""
        self.position = number
        records = self.topic.records_after(number)
        if records is None or (not records and self._checked_marks != self.topic.stale_marks):
            self._checked_marks = self.topic.stale_marks
            return None
        return records

    def next_delta(self) -> TextDelta | StatusDelta | None:
        """Implement `Subscription.next_delta`."""
        topic, partial = self.topic, self.topic.partial_message
        if topic.status is not self._status:
            self._status = topic.status
            if topic.status is not None:
                return topic.status
        if partial is None:
            return None
        if partial is not self._partial_message:
            self._partial_message, self._pieces_read = partial, 0
            self._text_position = self.position
            if self.single_process and topic.last_number:
                # Records beyond the last published one can only belong to this message. With several processes, what
                # was published here may lag behind the event log for other reasons.
                self._text_position = min(self.position, topic.last_number)
        if self._pieces_read == len(partial.pieces):
            return None
        if self.position > max(self._text_position, topic.last_number):
            return None  # The event log returned unpublished records: the complete message may be one of them.
        text = "".join(partial.pieces[self._pieces_read :])
        self._pieces_read = len(partial.pieces)
        return TextDelta(partial.message_id, text)

    async def wait_for_change(self) -> bool:
        """Implement `Subscription.wait_for_change`."""
        while self._changes_seen == self.topic.changes and not self.ended:
            await self.topic.changed.wait()
        self._changes_seen = self.topic.changes
        return not self.ended


class MemoryFeed:
    """A `Feed` inside one process. Call its methods on the event loop's thread.

    It keeps records only while a session has subscribers, and not more than the limits above.

    Args:
        single_process: No other process writes to the store, so all events are published here. Otherwise a subclass
            reports what other processes wrote with `deliver`, `mark_stale` and `mark_stale_below`.
    """

    def __init__(self, *, single_process: bool = True) -> None:
        self._single_process = single_process
        self._topics: dict[str, Topic] = {}
        self._partial_messages: dict[str, PartialMessage] = {}
        self._last_numbers: OrderedDict[str, int] = OrderedDict()
        self._list_version = 1  # Callers of `sessions_changed` begin with 0.
        self._list_changed = asyncio.Event()
        self._closed = False

    @property
    def subscriber_count(self) -> int:
        """Number of subscriptions to sessions."""
        return sum(len(topic.subscriptions) for topic in self._topics.values())

    @property
    def subscribed_sessions(self) -> Collection[str]:
        """Ids of the sessions that have subscribers."""
        return self._topics.keys()

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """Implement `Feed.publish`."""
        if any(record.type in TEXT_ENDING_TYPES for record in records):
            self.end_delta(session_id)
        self.deliver(session_id, records)
        if any(record.type in LISTED for record in records):
            self.notify_list_changed()

    def deliver(self, session_id: str, records: Sequence[EventRecord]) -> bool:
        """Pass the new ones of `records` to the session's subscribers.

        Returns:
            False if events are missing between those known here and `records`.
        """
        known = self._last_number(session_id)
        if records and records[0].number <= known:
            records = [record for record in records if record.number > known]
        if not records:
            return True
        self._remember(session_id, records[-1].number)
        if (topic := self._topics.get(session_id)) is not None:
            topic.add(records)
            topic.wake()
        return not known or records[0].number == known + 1

    def mark_stale(self, session_id: str) -> None:
        """Make the session's subscribers read the event log once: it may hold more than was published here."""
        if (topic := self._topics.get(session_id)) is not None:
            topic.stale_marks += 1
            topic.wake()

    def mark_stale_below(self, session_id: str, last_number: int) -> bool:
        """Mark the session stale if events up to `last_number` are not known here. Return whether they were not."""
        if last_number <= self._last_number(session_id):
            return False
        self._remember(session_id, last_number)
        if (topic := self._topics.get(session_id)) is not None:
            topic.skip_to(last_number)
        self.mark_stale(session_id)
        return True

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """Implement `Feed.publish_delta`."""
        partial = self._partial_messages.get(session_id)
        if partial is None or partial.message_id != delta.message_id:
            partial = PartialMessage(delta.message_id)
        partial.pieces.append(delta.delta)
        self.show_partial_message(session_id, partial)

    def show_partial_message(self, session_id: str, partial: PartialMessage) -> None:
        """Make `partial` the message being written. Subscribers keep their positions in it."""
        self._partial_messages[session_id] = partial
        if (topic := self._topics.get(session_id)) is not None:
            topic.partial_message, topic.status = partial, None
            topic.wake()

    def publish_status(self, session_id: str, status: StatusDelta) -> None:
        """Implement `Feed.publish_status`."""
        self.show_status(session_id, status)

    def show_status(self, session_id: str, status: StatusDelta) -> None:
        """Pass `status` to the session's subscribers in this process."""
        if (topic := self._topics.get(session_id)) is not None:
            topic.status = status
            topic.wake()

    def end_delta(self, session_id: str) -> None:
        """Implement `Feed.end_delta`."""
        self._partial_messages.pop(session_id, None)
        if (topic := self._topics.get(session_id)) is not None:
            topic.partial_message = None

    def partial_message(self, session_id: str) -> PartialMessage | None:
        """Return the message being written."""
        return self._partial_messages.get(session_id)

    def notify_list_changed(self) -> None:
        """Implement `Feed.notify_list_changed`."""
        self.wake_list_readers()

    def wake_list_readers(self) -> None:
        """Wake the readers of the session list in this process."""
        self._list_version += 1
        # A new event per version: waiters of this version may still be asleep when the next version is announced.
        changed, self._list_changed = self._list_changed, asyncio.Event()
        changed.set()

    def close_session(self, session_id: str) -> None:
        """Implement `Feed.close_session`."""
        self.end_subscriptions(session_id)

    def end_subscriptions(self, session_id: str) -> None:
        """End the session's subscriptions in this process."""
        self._partial_messages.pop(session_id, None)
        self._last_numbers.pop(session_id, None)
        if (topic := self._topics.pop(session_id, None)) is not None:
            for subscription in topic.subscriptions:
                subscription.ended = True
            topic.wake()

    @asynccontextmanager
    async def subscribe(self, session_id: str) -> AsyncGenerator[MemorySubscription, None]:
        """Implement `Feed.subscribe`."""
        topic = self._topics.get(session_id)
        if topic is None:
            topic = Topic(self._last_numbers.get(session_id, 0), self._partial_messages.get(session_id))
            if not self._closed:
                self._topics[session_id] = topic
        subscription = MemorySubscription(topic, single_process=self._single_process)
        if self._closed:
            subscription.ended = True
        topic.subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            topic.subscriptions.discard(subscription)
            if not topic.subscriptions and self._topics.get(session_id) is topic:
                del self._topics[session_id]

    async def sessions_changed(self, seen: int) -> int | None:
        """Implement `Feed.sessions_changed`."""
        while self._list_version <= seen and not self._closed:
            await self._list_changed.wait()
        return None if self._closed else self._list_version

    def close(self) -> None:
        """Implement `Feed.close`."""
        self._closed = True
        for session_id in list(self._topics):
            self.end_subscriptions(session_id)
        self.wake_list_readers()

    def _last_number(self, session_id: str) -> int:
        topic = self._topics.get(session_id)
        return self._last_numbers.get(session_id, 0) if topic is None else topic.last_number

    def _remember(self, session_id: str, last_number: int) -> None:
        self._last_numbers[session_id] = last_number
        self._last_numbers.move_to_end(session_id)
        if len(self._last_numbers) > _MAX_REMEMBERED_SESSIONS:
            self._last_numbers.popitem(last=False)


class LocalSignals:
    """The `Signals` of a single process: there is no other process to receive one."""

    def send(self, signal: Signal) -> None:
        """Implement `Signals.send`."""

    def listen(self, on_signal: Callable[[Signal], None]) -> None:
        """Implement `Signals.listen`."""
