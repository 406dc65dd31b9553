"""Chat: storing what the user says, waking the run, and the stream of what comes of it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from app.application.services.streams import EventStreams, StreamItem
from app.domain.errors import InvalidInput, NotFound, StoreUnavailable
from app.domain.external.feed import Feed
from app.domain.external.run_queue import RunQueue
from app.domain.models.event import TERMINAL, EventRecord
from app.domain.models.session import Session
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.sessions import SessionRepository
from app.domain.services.agents.book import unix_now


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One chat call. `after`: number of the last event that the client has, None when it names none."""

    message: str
    timestamp: int | None = None
    after: int | None = None
    key: str | None = None
    """The client's idempotency key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a chat stream begins and ends: with the first terminal event above `ends_after`; `ends_at`: the last
    number to replay, with nothing running that could write one."""

    after: int
    skip: int = 0
    ends_after: int = 0
    ends_at: int | None = None


class ChatService:
    """The use cases of a conversation."""

    def __init__(
        self,
        *,
        sessions: SessionRepository,
        event_log: EventLog,
        streams: EventStreams,
        feed: Feed,
        queue: RunQueue,
        now: Callable[[], int] = unix_now,
    ) -> None:
        self._sessions = sessions
        self._event_log = event_log
        self._streams = streams
        self._feed = feed
        self._queue = queue
        self._now = now

    async def chat(self, session_id: str, request: ChatRequest, *, owner: str) -> AsyncGenerator[StreamItem, None]:
        """Store the message, if there is one, and wake the run; answers the stream, which has not begun yet.

        Raises:
            NotFound: no such session.
            InvalidInput: `after` was never issued.
            StoreUnavailable: the message is not stored.
        """
        session = await self._sessions.get(session_id, owner=owner)
        check_position(session, request.after)
        if not request.message.strip():
            return self._stream(session_id, _attach(session, request.after or 0))
        at = self._now() if request.timestamp is None else request.timestamp
        receipt = await self._event_log.append_user_message(session_id, request.message, at=at, key=request.key)
        after = receipt.number if request.after is None else request.after
        place = _Place(after=after, skip=receipt.number, ends_after=receipt.number)
        if receipt.is_new:
            await self._queue.wake(session_id, up_to=receipt.number)
            return self._stream(session_id, place)
        # Said before: the run may be over, and the client may have its end already.
        session = await self._sessions.get(session_id, owner=owner)
        return self._stream(
            session_id, place if session.status == "active" else replace(place, ends_at=session.last_event_number)
        )

    async def follow(self, session_id: str, *, after: int, owner: str) -> AsyncGenerator[StreamItem, None]:
        """Everything after number `after`, then live until the session is deleted.

        Raises:
            NotFound: no such session.
            InvalidInput: `after` was never issued.
        """
        check_position(await self._sessions.get(session_id, owner=owner), after)
        return self._delivering(session_id, after)

    async def stop(self, session_id: str, *, owner: str) -> None:
        """End what is going, if anything is; `done` is written when this returns.

        Raises:
            NotFound: no such session.
        """
        session = await self._sessions.get(session_id, owner=owner)
        if session.status in ("active", "waiting"):
            await self._queue.stop(session_id, up_to=session.last_event_number)

    async def _stream(self, session_id: str, place: _Place) -> AsyncGenerator[StreamItem, None]:
        if place.ends_at is not None:
            async with aclosing(self._streams.replay(session_id, after=place.after, up_to=place.ends_at)) as pages:
                async for records in pages:
                    shown, ended = _cut(records, place)
                    if shown:
                        yield shown
                        await self._delivered(session_id, _newest_message(shown))
                    if ended:
                        return
            return
        newest = 0
        async with aclosing(self._delivering(session_id, place.after)) as items:
            async for item in items:
                if not isinstance(item, Sequence):
                    yield item
                    continue
                shown, ended = _cut(item, place)
                newest = max(newest, _newest_message(shown))
                if shown:
                    yield shown
                if ended:
                    # Also what came before the end, when the reader has not caught up in between.
                    await self._delivered(session_id, newest)
                    return

    async def _delivering(self, session_id: str, after: int) -> AsyncGenerator[StreamItem, None]:
        """Follow, and note what was delivered whenever the reader has caught up."""
        newest = 0
        async with aclosing(self._streams.follow(session_id, after=after)) as items:
            async for item in items:
                if isinstance(item, Sequence):
                    if not item:
                        await self._delivered(session_id, newest)
                        newest = 0
                        continue
                    newest = max(newest, _newest_message(item))
                yield item

    async def _delivered(self, session_id: str, number: int) -> None:
        if number:
            # Deleted while its stream was open; or the store is away, and then it stays unread a little longer.
            with suppress(NotFound, StoreUnavailable):
                if await self._sessions.mark_delivered(session_id, number=number):
                    self._feed.notify_list_changed()


def check_position(session: Session, after: int | None) -> None:
    """Refuse a position that the session has not reached.

    Raises:
        InvalidInput: no event of that number was issued.
    """
    if after is not None and after > session.last_event_number:
        raise InvalidInput("event_id: this session never issued it")


def _attach(session: Session, after: int) -> _Place:
    if session.status == "active":
        return _Place(after=after, ends_after=session.last_event_number)
    return _Place(after=after, ends_after=session.last_event_number, ends_at=session.last_event_number)


def _cut(records: Sequence[EventRecord], place: _Place) -> tuple[Sequence[EventRecord], bool]:
    """The records up to the stream's end, without the client's own message, and whether that was the end."""
    for index, record in enumerate(records):
        if record.type in TERMINAL and record.number > place.ends_after:
            return _without(records[: index + 1], place.skip), True
    return _without(records, place.skip), False


def _without(records: Sequence[EventRecord], number: int) -> Sequence[EventRecord]:
    if records and records[0].number <= number <= records[-1].number:
        return [record for record in records if record.number != number]
    return records


def _newest_message(records: Sequence[EventRecord]) -> int:
    return next((record.number for record in reversed(records) if record.type == "message"), 0)
