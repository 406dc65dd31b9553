"""Writes to one session, worked out in memory: both stores apply requests here and then write the resulting rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from app.domain.errors import LeaseLost, Superseded, TooLarge
from app.domain.models.event import Event, EventRecord, MessageEvent, TitleEvent
from app.domain.models.limits import day_of
from app.domain.models.run import TranscriptName
from app.domain.models.session import changes_of, title_of
from app.domain.repositories.event_log import Commit, StoredMessage
from app.infrastructure.persistence import codec
from app.infrastructure.persistence.group_commit import CommittedEvents
from app.infrastructure.persistence.session_summary import check_timestamp, preview

EncodeEvent = Callable[[Event, int, int], bytes]
"""Encoder of an event, its number and its timestamp into the JSON that is stored and sent."""


CURSOR_FIELDS = (
    *("ordinal", "last_event", "last_user_message", "planner_messages", "executor_messages", "revision"),
    "title",
)
"""Stored fields of a session that its cursor contains."""


@dataclass(frozen=True, slots=True)
class ReceiveRequest:
    """Request to store a user message."""

    content: str
    timestamp: int
    key: str | None
    """Idempotency key, well formed."""
    model: str | None = None
    """Model profile that the session uses from now on; None to leave it as it is."""
    origin: str = ""
    """See `Checkpoint.origin`."""


@dataclass(frozen=True, slots=True)
class RenameRequest:
    """Request to give a session the title that its user chose."""

    title: str
    timestamp: int


WriteRequest = Commit | ReceiveRequest | RenameRequest
"""A write to one session."""


@dataclass(frozen=True, slots=True)
class SessionCursor:
    """Position of a session: what the next write must know of it."""

    ordinal: int
    last_event: int
    """Number of the newest event."""
    last_user_message: int
    """Number of the newest user message."""
    planner_messages: int
    """Number of messages in the planner's transcript."""
    executor_messages: int
    """Number of messages in the executor's transcript."""
    revision: str
    """Revision of the stored checkpoint; empty when there is none."""
    title: str
    """Title of the session; empty if it has none."""
    fencing_token: int = 0
    """Token of the session's newest lease; 0 in a store without leases."""


class EventRow(NamedTuple):
    """An event to insert."""

    key: int
    type: str
    speaker: int | None
    data: bytes


class TranscriptRow(NamedTuple):
    """A message of a transcript to insert."""

    key: int
    data: bytes


class SessionUpdate:
    """Several writes to one session, which the store applies as one.

    Each write is checked and encoded completely before it changes the update. A refused write therefore leaves no
    trace, and the writes around it are stored.
    """

    def __init__(
        self,
        session_id: str,
        cursor: SessionCursor,
        encode: EncodeEvent,
        *,
        committed: list[CommittedEvents] | None = None,
        message_keys: Mapping[str, int] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Start an update.

        Args:
            session_id: Id of the session.
            cursor: Position of the session before the update.
            encode: Encoder of events.
            committed: List to append the events of each write to.
            message_keys: Stored idempotency keys with the numbers of their messages. The store adds what it looks up
                later.
            max_bytes: Maximum size of one write.
        """
        self._session_id = session_id
        self._encode = encode
        self._max_bytes = max_bytes
        self.cursor = cursor
        """Position of the session after the update."""
        self.message_keys = dict(message_keys or {})
        self.committed: list[CommittedEvents] = [] if committed is None else committed
        """Events of each write, in order."""
        self.events: list[EventRow] = []
        self.messages: list[TranscriptRow] = []
        self.new_keys: dict[str, int] = {}
        """Idempotency keys to insert, with the numbers of their messages."""
        self.fields: dict[str, str | int] = {}
        """New values of the session's fields."""
        self.increments: dict[str, float] = {}
        """Numbers to add to the session's counters."""
        self.daily_tokens: dict[int, int] = {}
        """Tokens to count for the owner, by day since the epoch."""
        self.checkpoint: bytes | None = None
        self.is_fenced = False
        """Whether a write holds only while the lease of `cursor.fencing_token` is the newest."""
        self.size = 0
        """Bytes of all rows."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store."""
        return not (self.events or self.messages or self.checkpoint is not None or self.increments)

    def apply(self, request: WriteRequest) -> Sequence[EventRecord] | StoredMessage:
        """Add one write. See `commit`, `receive` and `rename` for the result and the errors."""
        match request:
            case Commit():
                return self.commit(request)
            case ReceiveRequest():
                return self.receive(request)
            case RenameRequest():
                return self.rename(request)

    def commit(self, commit: Commit) -> Sequence[EventRecord]:
        """Add a commit, see `EventLog.commit`."""
        check_timestamp(commit.timestamp)
        cursor = self.cursor
        if commit.fencing_token not in (None, cursor.fencing_token):
            raise LeaseLost("another worker has leased the session")
        if commit.is_already_stored(cursor.revision):
            return ()
        if commit.ends_after_message is not None and cursor.last_user_message > commit.ends_after_message:
            raise Superseded("a newer user message is waiting to be read")
        records = self._encode_events(commit.events, commit.timestamp)
        lengths, messages = self._encode_messages(commit)
        checkpoint = None if commit.checkpoint is None else codec.encode_checkpoint(commit.checkpoint)
        self._reserve(records, *(row.data for row in messages), checkpoint or b"")
        self._add_events(commit.events, records, commit.timestamp)
        if messages:
            self.messages += messages
            self._move(planner_messages=lengths["planner"], executor_messages=lengths["executor"])
        if commit.checkpoint is not None:
            self.checkpoint = checkpoint
            self.cursor = replace(self.cursor, revision=commit.checkpoint.revision)
        if commit.usage is not None:
            self._increment(asdict(commit.usage))
            day = day_of(commit.timestamp)
            self.daily_tokens[day] = self.daily_tokens.get(day, 0) + commit.usage.total_tokens
        self.is_fenced = self.is_fenced or commit.fencing_token is not None
        return records

    def receive(self, request: ReceiveRequest) -> StoredMessage:
        """Add a user message, see `EventLog.append_user_message`."""
        check_timestamp(request.timestamp)
        key = request.key
        if key is not None and key in self.message_keys:
            return StoredMessage(number=self.message_keys[key], is_new=False)
        events = (MessageEvent(role="user", content=request.content),)
        records = self._encode_events(events, request.timestamp)
        self._reserve(records)
        self._add_events(events, records, request.timestamp)
        if not self.cursor.title and (title := title_of(request.content)):
            self._move(title=codec.well_formed(title))
        if request.model is not None:
            self.fields["model"] = request.model
        self.fields["origin"] = request.origin
        number = records[0].number
        if key is not None:
            self.message_keys[key] = self.new_keys[key] = number
        return StoredMessage(number=number, is_new=True)

    def rename(self, request: RenameRequest) -> Sequence[EventRecord]:
        """Add the user's title, see `EventLog.rename_session`."""
        check_timestamp(request.timestamp)
        events = (TitleEvent(title=request.title),)
        records = self._encode_events(events, request.timestamp)
        self._reserve(records)
        self._add_events(events, records, request.timestamp)
        self.fields["given_title"] = self.cursor.title
        return records

    def _encode_events(self, events: Sequence[Event], timestamp: int) -> list[EventRecord]:
        return [
            EventRecord(number, event.type, self._encode(event, number, timestamp))
            for number, event in enumerate(events, start=self.cursor.last_event + 1)
        ]

    def _encode_messages(self, commit: Commit) -> tuple[dict[TranscriptName, int], list[TranscriptRow]]:
        lengths: dict[TranscriptName, int] = {
            "planner": self.cursor.planner_messages,
            "executor": self.cursor.executor_messages,
        }
        rows: list[TranscriptRow] = []
        for transcript, message in commit.messages:
            lengths[transcript] += 1
            key = codec.transcript_key(self.cursor.ordinal, transcript, lengths[transcript])
            rows.append(TranscriptRow(key, codec.encode_message(message)))
        return lengths, rows

    def _reserve(self, records: Sequence[EventRecord], *others: bytes) -> None:
        size = sum(len(record.data) for record in records) + sum(map(len, others))
        if self._max_bytes is not None and size > self._max_bytes:
            raise TooLarge(f"one write has more than {self._max_bytes // 2**20} MiB")
        self.size += size

    def _add_events(self, events: Sequence[Event], records: Sequence[EventRecord], timestamp: int) -> None:
        """Add the rows of the events, and update the session's summary."""
        if not events:
            return
        ordinal = self.cursor.ordinal
        rows = [
            EventRow(codec.event_key(ordinal, record.number), record.type, codec.speaker_of(event), record.data)
            for event, record in zip(events, records, strict=True)
        ]
        self.events += rows
        self.committed.append((self._session_id, records))
        self._move(last_event=records[-1].number)
        from_user = [record.number for row, record in zip(rows, records, strict=True) if row.speaker == codec.USER]
        if from_user:
            self._move(last_user_message=from_user[-1])
        changes = changes_of(events)
        self._increment({"unread": changes.assistant_messages or None})
        if changes.title is not None:
            self._move(title=codec.well_formed(changes.title))
        if changes.status is not None:
            self.fields["status"] = changes.status
        if changes.latest_message is not None:
            self.fields["latest_message"] = preview(changes.latest_message)
            self.fields["latest_message_at"] = self.fields["last_activity"] = timestamp

    def _move(self, **positions: Any) -> None:
        self.cursor = replace(self.cursor, **positions)
        self.fields.update(positions)

    def _increment(self, counts: Mapping[str, float | None]) -> None:
        for name, count in counts.items():
            if count is not None:
                self.increments[name] = self.increments.get(name, 0) + count
