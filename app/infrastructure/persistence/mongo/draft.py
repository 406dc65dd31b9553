"""What a batch of writes to one session comes to: worked out in memory, then stored as one update of its document."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.errors import LeaseLost, Superseded, TooLarge
from app.domain.models.event import Event, EventRecord, MessageEvent
from app.domain.models.message import Usage
from app.domain.models.run import TranscriptName
from app.domain.models.session import changes_of
from app.domain.repositories.event_log import Commit, StoredMessage
from app.infrastructure.persistence.codec import encode_message, encode_run
from app.infrastructure.persistence.listing import check_time, preview, well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.rows import event_key, speaker_of, transcript_key

Encode = Callable[[Event, int, int], bytes]
"""An event, its number and its time (seconds since the epoch) to the JSON that is stored and sent."""

_MOST_BYTES = 12 * 2**20
"""Of one change: a document has at most 16 MiB, and holds more than the rows."""

_ENOUGH_BYTES = 2**20
"""In a batch, after which the next write waits for the next one."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Rows of the newest change, as documents of their collections."""

    events: Sequence[Document] = ()
    said: Sequence[Document] = ()
    keys: Sequence[Document] = ()

    def __bool__(self) -> bool:
        return bool(self.events or self.said or self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Where a session stands, as far as the next write must know it."""

    ordinal: int
    version: int
    head: int
    last_words: int
    talk: int
    work: int
    token: int
    revision: str
    tail: Tail
    copied: bool = False
    """Whether the tail's rows are known to lie where rows lie."""


HEAD_FIELDS: Document = {
    name: 1 for name in ("ordinal", "version", "head", "last_words", "talk", "work", "lease.token", "revision", "tail")
}


def head_of(found: Document) -> Head:
    """The head from a session's document that was read with `HEAD_FIELDS`."""
    return Head(
        ordinal=found["ordinal"],
        version=found["version"],
        head=found["head"],
        last_words=found["last_words"],
        talk=found["talk"],
        work=found["work"],
        token=found["lease"]["token"],
        revision=found.get("revision", ""),
        tail=tail_of(found),
    )


def tail_of(found: Document) -> Tail:
    """The tail from a session's document."""
    tail = found["tail"]
    return Tail(tail.get("events", ()), tail.get("said", ()), tail.get("keys", ()))


class Draft:
    """A batch in the making, behind `head`. `known` tells which of its keys were seen before, and their messages.

    Every operation checks and encodes everything before it adds anything: one that is refused leaves nothing behind.
    """

    def __init__(self, head: Head, known: Mapping[str, int], encode: Encode) -> None:
        self._before = head
        self._known = dict(known)
        self._encode = encode
        self._head = head.head
        self._last_words = head.last_words
        self._revision = head.revision
        self._lengths: dict[TranscriptName, int] = {"planner": head.talk, "executor": head.work}
        self._events: list[Document] = []
        self._said: list[Document] = []
        self._keys: list[Document] = []
        self._set: Document = {}
        self._unread = 0
        self._usage = Usage()
        self._bytes = 0
        self._fenced = False

    def commit(self, change: Commit) -> list[EventRecord]:
        """See `EventLog.commit`."""
        check_time(change.timestamp)
        if change.fencing_token is not None and change.fencing_token != self._before.token:
            raise LeaseLost("another worker has the session's run now")
        if change.is_already_stored(self._revision):
            return []
        if change.ends_after_message is not None and self._last_words > change.ends_after_message:
            raise Superseded("a newer message is waiting to be read")
        records = self._records(change.events, change.timestamp)
        said: list[tuple[TranscriptName, bytes]] = [
            (thread, encode_message(message)) for thread, message in change.messages
        ]
        state = None if change.checkpoint is None else encode_run(change.checkpoint)
        self._take(sum(map(len, (*(record.data for record in records), *(data for _, data in said), state or b""))))
        self._fenced = self._fenced or change.fencing_token is not None
        self._append(change.events, records, change.timestamp)
        for thread, data in said:
            self._lengths[thread] += 1
            key = transcript_key(self._before.ordinal, thread, self._lengths[thread])
            self._said.append({"_id": key, "data": data})
        if change.checkpoint is not None:
            self._revision = change.checkpoint.revision
            self._set |= {"run": state, "revision": self._revision}
        self._usage += change.usage or Usage()
        return records

    def receive(self, content: str, at: int, key: str | None) -> tuple[StoredMessage, list[EventRecord]]:
        """See `EventLog.append_user_message`; the records are empty when the key was known."""
        check_time(at)
        if key is not None and key in self._known:
            return StoredMessage(number=self._known[key], is_new=False), []
        events = (MessageEvent(role="user", content=content),)
        records = self._records(events, at)
        self._take(len(records[0].data))
        self._append(events, records, at)
        number = records[0].number
        if key is not None:
            self._known[key] = number
            self._keys.append({"_id": {"s": self._before.ordinal, "k": key}, "number": number})
        return StoredMessage(number=number, is_new=True), records

    @property
    def is_full(self) -> bool:
        """Whether what is still waiting had better go into the next batch."""
        return self._bytes > _ENOUGH_BYTES

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to store."""
        return not (self._tail or self._set or self._usage != Usage())

    @property
    def condition(self) -> Document:
        """Under which the update may happen, beside the session's id: that nobody wrote in between."""
        before = self._before
        condition: Document = {"ordinal": before.ordinal, "version": before.version}
        return {**condition, "lease.token": before.token} if self._fenced else condition

    @property
    def update(self) -> Document:
        """The update of the session's document."""
        after = self.after
        changed: Document = dict(self._set)
        if self._tail:
            changed |= {name: getattr(after, name) for name in ("head", "last_words", "talk", "work")}
            parts = {"events": self._events, "said": self._said, "keys": self._keys}
            changed["tail"] = {name: rows for name, rows in parts.items() if rows}
        spent = self._usage
        added = {
            "version": after.version - self._before.version,
            "unread": self._unread,
            "usage.prompt_tokens": spent.prompt_tokens,
            "usage.cached_tokens": spent.cached_tokens,
            "usage.completion_tokens": spent.completion_tokens,
            "usage.calls": spent.calls,
        }
        update: Document = {"$inc": {name: number for name, number in added.items() if number}}
        if changed:
            update["$set"] = changed
        return {operator: fields for operator, fields in update.items() if fields}

    @property
    def after(self) -> Head:
        """Where the session stands once this is stored."""
        if self.is_idle:
            return self._before
        before, tail = self._before, self._tail
        return replace(
            before,
            version=before.version + 1,
            revision=self._revision,
            head=self._head,
            last_words=self._last_words,
            talk=self._lengths["planner"],
            work=self._lengths["executor"],
            tail=tail or before.tail,
            copied=before.copied and not tail,
        )

    @property
    def _tail(self) -> Tail:
        return Tail(self._events, self._said, self._keys)

    def _records(self, events: Sequence[Event], at: int) -> list[EventRecord]:
        return [
            EventRecord(number, event.type, self._encode(event, number, at))
            for number, event in enumerate(events, start=self._head + 1)
        ]

    def _take(self, size: int) -> None:
        if size > _MOST_BYTES:
            raise TooLarge(f"what is to be stored at once has more than {_MOST_BYTES // 2**20} MiB")
        self._bytes += size

    def _append(self, events: Sequence[Event], records: Sequence[EventRecord], at: int) -> None:
        """Add the events, and bring the summary up to date with them."""
        for event, record in zip(events, records, strict=True):
            row: Document = {"_id": event_key(self._before.ordinal, record.number), "type": record.type}
            speaker = speaker_of(event)
            if speaker is not None:
                row["speaker"] = speaker
            self._events.append({**row, "data": record.data})
            if isinstance(event, MessageEvent) and event.role == "user":
                self._last_words = record.number
        self._head += len(records)
        changes = changes_of(events)
        self._unread += changes.assistant_messages
        if changes.title is not None:
            self._set["title"] = well_formed(changes.title)
        if changes.status is not None:
            self._set["status"] = changes.status
        if changes.latest_message is not None:
            self._set |= {"latest_message": preview(changes.latest_message), "latest_message_at": at, "touched": at}
