"""Use cases: send a message, and follow the events of a session."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from time import perf_counter

from app.application.run_monitor import RunMetrics, RunMonitor
from app.application.services.audit import AuditTrail, hash_text
from app.application.services.limits import LimitService
from app.application.services.sessions import check_position
from app.application.services.streams import EventStreams, StreamItem
from app.domain.clock import unix_now
from app.domain.errors import NotFound, StoreUnavailable
from app.domain.external.feed import Feed
from app.domain.external.llm import ModelCatalog
from app.domain.external.run_queue import RunQueue
from app.domain.models.audit import Detail
from app.domain.models.event import TERMINAL, EventRecord, TextDelta
from app.domain.models.session import Session
from app.domain.repositories.event_log import EventLog, StoredMessage
from app.domain.repositories.sessions import SessionRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One call of the chat endpoint."""

    message: str
    """The user's message. Empty: attach to the current run without sending anything."""
    timestamp: int | None = None
    """Time of the message in seconds since the epoch, UTC; None for now."""
    after: int | None = None
    """Number of the last event that the client has; None if it names none."""
    key: str | None = None
    """The client's idempotency key."""
    model: str = ""
    """Name of the model profile to use from this message on; empty to keep the session's.

    A request without a message changes nothing, so clients may send their choice again when they reconnect.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class _StreamRange:
    """The part of the event log that a chat stream delivers.

    The stream begins after event `after` and ends with the first terminal event after event `ends_after`.
    """

    after: int
    ends_after: int
    skip: int = 0
    """Number of the client's own message, which is not sent back; 0 for none."""
    ends_at: int | None = None
    """Number of the last event to deliver. Set if nothing runs that could store a terminal event."""


class _StreamTimer:
    """Measures when a stream sends the first event and the first text that a message leads to."""

    def __init__(self, metrics: RunMetrics, started: float, message: int) -> None:
        """Begin. `started`: time of the request; `message`: event number of the message."""
        self._metrics = metrics
        self._started = started
        self._message = message
        self._has_event = self._has_text = False

    def see(self, item: StreamItem) -> None:
        """Measure `item`, which is about to be sent, if it is a first one."""
        if not self._has_text and isinstance(item, TextDelta):
            self._has_text = True
            self._metrics.first_text.observe(perf_counter() - self._started)
        elif not self._has_event and isinstance(item, Sequence) and item and item[-1].number > self._message:
            self._has_event = True
            self._metrics.first_event.observe(perf_counter() - self._started)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatService:
    """Send messages to a session and stream its events."""

    sessions: SessionRepository
    event_log: EventLog
    streams: EventStreams
    feed: Feed
    queue: RunQueue
    models: ModelCatalog
    limits: LimitService
    audit: AuditTrail
    monitor: RunMonitor = field(default_factory=lambda: RunMonitor(RunMetrics()))
    now: Callable[[], int] = unix_now

    async def chat(self, session_id: str, request: ChatRequest, *, owner: str) -> AsyncGenerator[StreamItem, None]:
        """Store the message, wake the run, and return the stream of the run's events up to its end.

        With an empty message, only return the stream of the current run.

        Raises:
            NotFound: The session does not exist.
            InvalidInput: The session has no event number `after`, or there is no such model profile.
            LimitReached: A limit of the owner forbids another run. The message is not stored.
            StoreUnavailable: The message is not stored.
        """
        started = perf_counter()
        session = await self.sessions.get(session_id, owner=owner)
        check_position(session, request.after)
        await self._mark_known(session, request.after)
        if request.model:
            self.models.check(request.model)
        if not request.message.strip():
            return self._stream(session_id, _range_of_current_run(session, request.after or 0))
        async with self.limits.new_message(session, request.key):
            stored = await self._store(session, request, owner)
        after = stored.number if request.after is None else request.after
        stream_range = _StreamRange(after=after, skip=stored.number, ends_after=stored.number)
        if stored.is_new:
            await self.queue.wake(session_id, up_to=stored.number, owner=owner)
            timer = _StreamTimer(self.monitor.metrics, started, stored.number)
            return self._stream(session_id, stream_range, timer)
        # The message was sent before. Its run may be over, and the client may already have the terminal event.
        session = await self.sessions.get(session_id, owner=owner)
        if session.status != "running":
            stream_range = replace(stream_range, ends_at=session.last_event_number)
        return self._stream(session_id, stream_range)

    async def _store(self, session: Session, request: ChatRequest, owner: str) -> StoredMessage:
        at = self.now() if request.timestamp is None else request.timestamp
        details: dict[str, Detail] = {
            "length": len(request.message),
            "message_sha256": hash_text(request.message),
            "model": request.model,
            "follows_event": session.last_event_number,
        }
        if request.key is not None:
            details["key_sha256"] = hash_text(request.key)
            if (number := await self.event_log.find_message(session.id, request.key)) is not None:
                return StoredMessage(number=number, is_new=False)  # a repetition changes nothing: no record
        async with self.audit.recording("message.send", owner=owner, session_id=session.id, **details):
            return await self.event_log.append_user_message(
                session.id,
                request.message,
                at=at,
                key=request.key,
                model=request.model or None,
                origin=self.monitor.origin(),
            )

    async def follow(self, session_id: str, *, after: int, owner: str) -> AsyncGenerator[StreamItem, None]:
        """Return the stream of all events after number `after`. It ends when the session is deleted.

        Raises:
            NotFound: The session does not exist.
            InvalidInput: The session has no event number `after`.
        """
        session = await self.sessions.get(session_id, owner=owner)
        check_position(session, after)
        await self._mark_known(session, after)
        return self._follow_and_mark(session_id, after)

    async def _stream(
        self, session_id: str, stream_range: _StreamRange, timer: _StreamTimer | None = None
    ) -> AsyncGenerator[StreamItem, None]:
        source = (
            self._follow_and_mark(session_id, stream_range.after)
            if stream_range.ends_at is None
            else self._replay_and_mark(session_id, stream_range.after, stream_range.ends_at)
        )
        newest_message = 0
        async with aclosing(source) as items:
            async for item in items:
                if timer is not None:
                    timer.see(item)
                if not isinstance(item, Sequence):
                    yield item
                    continue
                shown, ended = _cut(item, stream_range)
                newest_message = max(newest_message, _newest_message(shown))
                if shown:
                    yield shown
                if ended:
                    # Includes earlier messages of this stream, in case the reader never caught up.
                    await self._mark_delivered(session_id, newest_message)
                    return

    async def _replay_and_mark(self, session_id: str, after: int, up_to: int) -> AsyncGenerator[StreamItem, None]:
        """Yield the stored events up to number `up_to`; mark the messages of a page once the reader has taken it."""
        async with aclosing(self.streams.replay(session_id, after=after, up_to=up_to)) as pages:
            async for records in pages:
                yield records
                await self._mark_delivered(session_id, _newest_message(records))

    async def _follow_and_mark(self, session_id: str, after: int) -> AsyncGenerator[StreamItem, None]:
        """Yield all events after `after`; mark messages as delivered whenever the reader has caught up."""
        newest_message = 0
        async with aclosing(self.streams.follow(session_id, after=after)) as items:
            async for item in items:
                if isinstance(item, Sequence):
                    if not item:
                        await self._mark_delivered(session_id, newest_message)
                        newest_message = 0
                        continue
                    newest_message = max(newest_message, _newest_message(item))
                yield item

    async def _mark_known(self, session: Session, after: int | None) -> None:
        """Mark what the client has, for example from the history, when it opens a stream from there on."""
        if session.unread_count:
            await self._mark_delivered(session.id, after or 0)

    async def _mark_delivered(self, session_id: str, number: int) -> None:
        if number:
            # The session may have been deleted. If the store is unavailable, messages stay unread for longer.
            with suppress(NotFound, StoreUnavailable):
                if await self.sessions.mark_delivered(session_id, number=number):
                    self.feed.notify_list_changed()


def _range_of_current_run(session: Session, after: int) -> _StreamRange:
    last = session.last_event_number
    return _StreamRange(after=after, ends_after=last, ends_at=None if session.status == "running" else last)


def _cut(records: Sequence[EventRecord], stream_range: _StreamRange) -> tuple[Sequence[EventRecord], bool]:
    """Return the records up to the stream's end without the client's own message, and whether the stream ends."""
    for index, record in enumerate(records):
        if record.type in TERMINAL and record.number > stream_range.ends_after:
            return _without(records[: index + 1], stream_range.skip), True
    return _without(records, stream_range.skip), False


def _without(records: Sequence[EventRecord], number: int) -> Sequence[EventRecord]:
    if records and records[0].number <= number <= records[-1].number:
        return [record for record in records if record.number != number]
    return records


def _newest_message(records: Sequence[EventRecord]) -> int:
    return next((record.number for record in reversed(records) if record.type == "message"), 0)
