"""A store in memory: the storage ports with the behaviour of the real stores, for tests that need no disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from app.domain.errors import Conflict, LeaseLost, NotFound, StoreUnavailable, Superseded
from app.domain.models.event import Event, EventRecord, MessageEvent, TitleEvent
from app.domain.models.limits import day_of
from app.domain.models.message import TranscriptEntry, Usage
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.models.session import Session, SessionPage, changes_of, title_of
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.infrastructure.persistence.codec import take, well_formed
from app.infrastructure.persistence.session_summary import (
    ListedSession,
    check_timestamp,
    decode_cursor,
    page_of,
    preview,
)
from app.interfaces.wire import encode_event


@dataclass
class _StoredSession:
    ordinal: int
    session: Session
    last_activity: int
    given_title: str = ""
    origin: str = ""
    delivered: int = 0
    events: list[tuple[Event, EventRecord]] = field(default_factory=list)
    transcripts: dict[TranscriptName, list[TranscriptEntry]] = field(
        default_factory=lambda: {"planner": [], "executor": []}
    )
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    message_keys: dict[str, int] = field(default_factory=dict)
    screenshots: dict[str, bytes] = field(default_factory=dict)

    def messages(self, role: str, *, after: int) -> list[EventRecord]:
        return [
            record
            for event, record in self.events[max(after, 0) :]
            if isinstance(event, MessageEvent) and event.role == role
        ]


class MemoryStore:
    """An `EventLog` and a `SessionRepository` in one. Set `trouble` to make every call raise `StoreUnavailable`."""

    def __init__(
        self,
        *,
        encode: Callable[[Event, int, int], bytes] = encode_event,
        on_committed: Callable[[str, Sequence[EventRecord]], None] = lambda session_id, records: None,
    ) -> None:
        self._encode = encode
        self._on_committed = on_committed
        self._sessions: dict[str, _StoredSession] = {}
        self._created = 0
        self.trouble: str | None = None
        self.fences: dict[str, int] = {}
        """Token of the newest lease, by session."""
        self.waiting_since: dict[str, int] = {}
        """When a session began to wait for a holder, by session; each time is a number that counts up."""
        self.daily_tokens: dict[str, tuple[int, int]] = {}
        """Newest day of a commit, and the tokens of all runs on it, by owner."""

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        check_timestamp(commit.timestamp)
        stored = self._find(session_id)
        if commit.fencing_token is not None and commit.fencing_token != self.fences.get(session_id):
            raise LeaseLost("another worker has leased the session")
        if commit.is_already_stored(stored.checkpoint.revision):
            return []
        if commit.ends_after_message is not None and self.last_user_message(session_id) > commit.ends_after_message:
            raise Superseded("a newer user message is waiting to be read")
        records = self._append(stored, commit.events, commit.timestamp)
        for transcript, message in commit.messages:
            stored.transcripts[transcript].append(message)
        stored.checkpoint = commit.checkpoint or stored.checkpoint
        stored.session = replace(stored.session, usage=stored.session.usage + (commit.usage or Usage()))
        if commit.usage is not None:
            self._count_tokens(stored.session.owner, day_of(commit.timestamp), commit.usage.total_tokens)
        if records:
            self._on_committed(session_id, records)
        return records

    async def append_user_message(
        self,
        session_id: str,
        content: str,
        *,
        at: int,
        key: str | None,
        model: str | None = None,
        origin: str = "",
    ) -> StoredMessage:
        check_timestamp(at)
        stored = self._find(session_id)
        if key is not None and well_formed(key) in stored.message_keys:
            return StoredMessage(number=stored.message_keys[well_formed(key)], is_new=False)
        records = self._append(stored, (MessageEvent(role="user", content=content),), at)
        self.note_waiting(session_id)
        if not stored.session.title:
            stored.session = replace(stored.session, title=well_formed(title_of(content)))
        if model is not None:
            stored.session = replace(stored.session, model=model)
        stored.origin = origin
        if key is not None:
            stored.message_keys[well_formed(key)] = records[0].number
        self._on_committed(session_id, records)
        return StoredMessage(number=records[0].number, is_new=True)

    async def find_message(self, session_id: str, key: str) -> int | None:
        return self._find(session_id).message_keys.get(well_formed(key))

    async def tokens_of_owner(self, session_id: str, *, day: int) -> int:
        newest, tokens = self.daily_tokens.get(self._find(session_id).session.owner, (0, 0))
        return tokens if newest >= day else 0

    async def rename_session(self, session_id: str, title: str, *, at: int) -> None:
        check_timestamp(at)
        stored = self._find(session_id)
        records = self._append(stored, (TitleEvent(title=title),), at)
        stored.given_title = stored.session.title
        self._on_committed(session_id, records)

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        start = max(after, 0)
        return take((record for _, record in self._find(session_id).events[start : start + limit]), max_bytes)

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        return [
            UnreadMessage(number=record.number, content=orjson.loads(record.data)["content"])
            for record in self._find(session_id).messages("user", after=after)
        ]

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        stored = self._find(session_id)
        session = stored.session
        return replace(
            stored.checkpoint,
            model=session.model,
            given_title=stored.given_title,
            title=session.title,
            origin=stored.origin,
        )

    async def load_transcript(
        self, session_id: str, transcript: TranscriptName, *, after: int = 0, limit: int | None = None
    ) -> Sequence[TranscriptEntry]:
        return self._find(session_id).transcripts[transcript][after:][:limit]

    async def create(self, session_id: str, *, owner: str, at: int, model: str = "", title: str = "") -> None:
        check_timestamp(at)
        self.check_trouble()
        if session_id in self._sessions:
            raise Conflict("a session with this id exists")
        self._created += 1
        session = Session(
            id=session_id,
            owner=owner,
            title=well_formed(title),
            status="pending",
            latest_message="",
            latest_message_at=None,
            unread_count=0,
            created_at=at,
            last_event_number=0,
            model=model,
        )
        self._sessions[session_id] = _StoredSession(
            ordinal=self._created, session=session, last_activity=at, given_title=session.title
        )

    async def get(self, session_id: str, *, owner: str) -> Session:
        return self._owned(session_id, owner).session

    async def get_any(self, session_id: str) -> Session:
        return self._find(session_id).session

    async def page_all(self, *, limit: int, cursor: str | None) -> SessionPage:
        self.check_trouble()
        before = None if cursor is None else decode_cursor(cursor)[1]
        found = [
            ListedSession(each.session, each.last_activity, each.ordinal)
            for each in reversed(self._sessions.values())
            if before is None or each.ordinal < before
        ]
        return page_of(found[: limit + 1], limit)

    async def assign_unowned(self, owner: str) -> int:
        self.check_trouble()
        unowned = [each for each in self._sessions.values() if not each.session.owner]
        for each in unowned:
            each.session = replace(each.session, owner=owner)
        return len(unowned)

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        self.check_trouble()
        before = None if cursor is None else decode_cursor(cursor)
        found = [
            ListedSession(each.session, each.last_activity, each.ordinal)
            for each in self._sessions.values()
            if each.session.owner == owner and (before is None or (each.last_activity, each.ordinal) < before)
        ]
        found.sort(key=lambda each: (each.last_activity, each.ordinal), reverse=True)
        return page_of(found[: limit + 1], limit)

    async def count(self, *, owner: str, up_to: int, running_only: bool = False) -> int:
        self.check_trouble()
        sessions = [each.session for each in self._sessions.values() if each.session.owner == owner]
        return min(up_to, sum(each.status == "running" or not running_only for each in sessions))

    async def list_active(self) -> Mapping[str, str]:
        self.check_trouble()
        sessions = (each.session for each in self._sessions.values())
        return {session.id: session.owner for session in sessions if session.status == "running"}

    def note_waiting(self, session_id: str) -> None:
        self.waiting_since[session_id] = max(self.waiting_since.values(), default=0) + 1

    def owner(self, session_id: str) -> str:
        return self._find(session_id).session.owner

    async def list_ids(self) -> Sequence[str]:
        self.check_trouble()
        return list(self._sessions)

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        self.check_trouble()
        return {each: len(self._sessions[each].events) for each in session_ids if each in self._sessions}

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        stored = self._find(session_id)
        stored.delivered = max(stored.delivered, min(number, len(stored.events)))
        unread = len(stored.messages("assistant", after=stored.delivered))
        before, stored.session = stored.session.unread_count, replace(stored.session, unread_count=unread)
        return unread != before

    async def set_pinned(self, session_id: str, *, owner: str, is_pinned: bool) -> None:
        stored = self._owned(session_id, owner)
        stored.session = replace(stored.session, is_pinned=is_pinned)

    async def delete(self, session_id: str, *, owner: str) -> None:
        self._owned(session_id, owner)
        del self._sessions[session_id]

    async def check(self) -> str | None:
        return self.trouble

    def screenshots_of(self, session_id: str) -> dict[str, bytes]:
        return self._find(session_id).screenshots

    def exists(self, session_id: str) -> bool:
        return session_id in self._sessions

    def last_user_message(self, session_id: str) -> int:
        return max((record.number for record in self._sessions[session_id].messages("user", after=0)), default=0)

    def check_trouble(self) -> None:
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)

    def _append(self, stored: _StoredSession, events: Sequence[Event], timestamp: int) -> list[EventRecord]:
        records = [
            EventRecord(number, event.type, self._encode(event, number, timestamp))
            for number, event in enumerate(events, start=len(stored.events) + 1)
        ]
        stored.events.extend(zip(events, records, strict=True))
        changes, old = changes_of(events), stored.session
        stored.session = replace(
            old,
            title=old.title if changes.title is None else well_formed(changes.title),
            status=changes.status or old.status,
            unread_count=old.unread_count + changes.assistant_messages,
            last_event_number=len(stored.events),
        )
        if changes.latest_message is not None:
            stored.last_activity = timestamp
            stored.session = replace(
                stored.session, latest_message=preview(changes.latest_message), latest_message_at=timestamp
            )
        return records

    def _count_tokens(self, owner: str, day: int, tokens: int) -> None:
        newest, before = self.daily_tokens.get(owner, (day, 0))
        self.daily_tokens[owner] = (day, tokens) if newest < day else (newest, before + tokens)

    def _find(self, session_id: str) -> _StoredSession:
        self.check_trouble()
        if session_id not in self._sessions:
            raise NotFound("no such session")
        return self._sessions[session_id]

    def _owned(self, session_id: str, owner: str) -> _StoredSession:
        stored = self._find(session_id)
        if stored.session.owner != owner:
            raise NotFound("no such session")
        return stored


class MemoryScreenshots:
    """The `ScreenshotRepository` of a `MemoryStore`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        self._store.screenshots_of(session_id)[screenshot_id] = jpeg

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        screenshots = self._store.screenshots_of(session_id)
        if screenshot_id not in screenshots:
            raise NotFound("no such screenshot in this session")
        return screenshots[screenshot_id]

    async def list_ids(self, session_id: str) -> Sequence[str]:
        return list(self._store.screenshots_of(session_id))
