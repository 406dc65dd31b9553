"""A store in memory: the storage ports with the semantics of the real ones, for tests that need no disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from app.domain.errors import Conflict, LeaseLost, NotFound, StoreUnavailable, Superseded
from app.domain.models.event import Event, EventRecord, MessageEvent
from app.domain.models.message import Message, Usage
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.models.session import Session, SessionPage, changes_of
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.infrastructure.persistence.listing import check_time, decode_cursor, encode_cursor, preview, well_formed
from app.interfaces.wire import encode_event


@dataclass
class _Kept:
    ordinal: int
    session: Session
    touched: int
    delivered: int = 0
    events: list[tuple[Event, EventRecord]] = field(default_factory=list)
    said: dict[TranscriptName, list[Message]] = field(default_factory=lambda: {"planner": [], "executor": []})
    run: Checkpoint = field(default_factory=Checkpoint)
    usage: Usage = field(default_factory=Usage)
    keys: dict[str, int] = field(default_factory=dict)
    screenshots: dict[str, bytes] = field(default_factory=dict)

    def speakers(self, role: str, after: int) -> list[tuple[MessageEvent, int]]:
        return [
            (event, record.number)
            for event, record in self.events[max(after, 0) :]
            if isinstance(event, MessageEvent) and event.role == role
        ]


class MemoryStore:
    """A `EventLog` and a `SessionRepository` in one. Set `trouble` to make every call raise `StoreUnavailable`."""

    def __init__(
        self,
        *,
        encode: Callable[[Event, int, int], bytes] = encode_event,
        on_committed: Callable[[str, Sequence[EventRecord]], None] = lambda session_id, records: None,
    ) -> None:
        self._encode = encode
        self._on_committed = on_committed
        self._kept: dict[str, _Kept] = {}
        self._created = 0
        self.trouble: str | None = None
        self.fences: dict[str, int] = {}
        """The token of each session's newest lease."""

    async def commit(self, session_id: str, change: Commit) -> Sequence[EventRecord]:
        check_time(change.timestamp)
        kept = self._find(session_id)
        if change.fencing_token is not None and change.fencing_token != self.fences.get(session_id):
            raise LeaseLost("another worker has the session's run now")
        if change.is_already_stored(kept.run.revision):
            return []
        if change.ends_after_message is not None and self.last_words(session_id) > change.ends_after_message:
            raise Superseded("a newer message is waiting to be read")
        records = self._append(kept, change.events, change.timestamp)
        for thread, message in change.messages:
            kept.said[thread].append(message)
        kept.run = change.checkpoint or kept.run
        kept.usage += change.usage or Usage()
        if records:
            self._on_committed(session_id, records)
        return records

    async def append_user_message(self, session_id: str, content: str, *, at: int, key: str | None) -> StoredMessage:
        check_time(at)
        kept = self._find(session_id)
        if key is not None and well_formed(key) in kept.keys:
            return StoredMessage(number=kept.keys[well_formed(key)], is_new=False)
        records = self._append(kept, (MessageEvent(role="user", content=content),), at)
        if key is not None:
            kept.keys[well_formed(key)] = records[0].number
        self._on_committed(session_id, records)
        return StoredMessage(number=records[0].number, is_new=True)

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        start = max(after, 0)
        return [record for _, record in self._find(session_id).events[start : start + limit]]

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        found = self._find(session_id).speakers("user", after)
        data = {
            record.number: orjson.loads(record.data) for _, record in self._find(session_id).events[max(after, 0) :]
        }
        return [UnreadMessage(number=number, content=data[number]["content"]) for _, number in found]

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        return self._find(session_id).run

    async def load_transcript(self, session_id: str, thread: TranscriptName) -> Sequence[Message]:
        return list(self._find(session_id).said[thread])

    async def create(self, session_id: str, *, owner: str, at: int) -> None:
        check_time(at)
        self.check_trouble()
        if session_id in self._kept:
            raise Conflict("there is a session of this id")
        self._created += 1
        session = Session(
            id=session_id,
            owner=owner,
            title="",
            status="pending",
            latest_message="",
            latest_message_at=None,
            unread_count=0,
            created_at=at,
            last_event_number=0,
        )
        self._kept[session_id] = _Kept(ordinal=self._created, session=session, touched=at)

    async def get(self, session_id: str, *, owner: str) -> Session:
        return self._owned(session_id, owner).session

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        self.check_trouble()
        place = None if cursor is None else decode_cursor(cursor)
        mine = [
            kept
            for kept in self._kept.values()
            if kept.session.owner == owner and (place is None or (kept.touched, kept.ordinal) < place)
        ]
        mine.sort(key=lambda kept: (kept.touched, kept.ordinal), reverse=True)
        shown = mine[:limit]
        more = len(mine) > limit and bool(shown)
        return SessionPage(
            sessions=tuple(kept.session for kept in shown),
            next_cursor=encode_cursor(shown[-1].touched, shown[-1].ordinal) if more else None,
        )

    async def list_active(self) -> Sequence[str]:
        self.check_trouble()
        return [kept.session.id for kept in self._kept.values() if kept.session.status == "active"]

    async def list_ids(self) -> Sequence[str]:
        self.check_trouble()
        return list(self._kept)

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        self.check_trouble()
        return {key: len(self._kept[key].events) for key in session_ids if key in self._kept}

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        kept = self._find(session_id)
        kept.delivered = max(kept.delivered, min(number, len(kept.events)))
        unread = len(kept.speakers("assistant", kept.delivered))
        before, kept.session = kept.session.unread_count, replace(kept.session, unread_count=unread)
        return unread != before

    async def usage(self, session_id: str) -> Usage:
        return self._find(session_id).usage

    async def delete(self, session_id: str, *, owner: str) -> None:
        self._owned(session_id, owner)
        del self._kept[session_id]

    async def check(self) -> str | None:
        return self.trouble

    async def store_screenshot(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        self._find(session_id).screenshots[screenshot_id] = jpeg

    async def screenshot(self, session_id: str, screenshot_id: str) -> bytes:
        screenshots = self._find(session_id).screenshots
        if screenshot_id not in screenshots:
            raise NotFound("no such screenshot in this session")
        return screenshots[screenshot_id]

    def exists(self, session_id: str) -> bool:
        return session_id in self._kept

    def last_words(self, session_id: str) -> int:
        return max((number for _, number in self._kept[session_id].speakers("user", 0)), default=0)

    def _append(self, kept: _Kept, events: Sequence[Event], at: int) -> list[EventRecord]:
        first = len(kept.events) + 1
        records = [
            EventRecord(number, event.type, self._encode(event, number, at))
            for number, event in enumerate(events, start=first)
        ]
        kept.events.extend(zip(events, records, strict=True))
        changes, old = changes_of(events), kept.session
        kept.session = replace(
            old,
            title=old.title if changes.title is None else well_formed(changes.title),
            status=changes.status or old.status,
            unread_count=old.unread_count + changes.assistant_messages,
            last_event_number=len(kept.events),
        )
        if changes.latest_message is not None:
            kept.touched = at
            kept.session = replace(kept.session, latest_message=preview(changes.latest_message), latest_message_at=at)
        return records

    def _find(self, session_id: str) -> _Kept:
        self.check_trouble()
        if session_id not in self._kept:
            raise NotFound("no such session")
        return self._kept[session_id]

    def _owned(self, session_id: str, owner: str) -> _Kept:
        kept = self._find(session_id)
        if kept.session.owner != owner:
            raise NotFound("no such session")
        return kept

    def check_trouble(self) -> None:
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)


class MemoryScreenshots:
    """The `ScreenshotRepository` of a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        await self._store.store_screenshot(session_id, screenshot_id, jpeg)

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        return await self._store.screenshot(session_id, screenshot_id)
