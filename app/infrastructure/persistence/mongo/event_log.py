"""The event log over MongoDB."""

from collections.abc import Sequence

import orjson

from app.domain.models.event import EventRecord
from app.domain.models.message import TranscriptEntry
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.infrastructure.persistence import codec
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.client import Document, MongoDatabase
from app.infrastructure.persistence.mongo.repositories import MongoRepository
from app.infrastructure.persistence.mongo.schema import MESSAGES_INDEX
from app.infrastructure.persistence.mongo.write_queue import SessionWriteQueue
from app.infrastructure.persistence.session_update import ReceiveRequest, RenameRequest

_EVENT_FIELDS = ("ordinal", "last_event", "tail.events")
_TRANSCRIPT_FIELDS = ("ordinal", "planner_messages", "executor_messages", "tail.messages")
_BY_KEY = [("_id", 1)]
"""Order of rows: by event number, or by position in a transcript."""


class MongoEventLog(MongoRepository):
    """Implements `EventLog`.

    A reader reads the session's document first and the rows second. Each row is then in its collection, or was in the
    document's tail (see `session_writer.py`).
    """

    def __init__(self, database: MongoDatabase, availability: StoreAvailability, queue: SessionWriteQueue) -> None:
        super().__init__(database, availability)
        self._queue = queue

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Implement `EventLog.commit`."""
        return await self._queue.commit(codec.well_formed(session_id), commit)

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
        """Implement `EventLog.append_user_message`."""
        request = ReceiveRequest(content, at, None if key is None else codec.well_formed(key), model, origin)
        return await self._queue.receive(codec.well_formed(session_id), request)

    async def rename_session(self, session_id: str, title: str, *, at: int) -> None:
        """Implement `EventLog.rename_session`."""
        await self._queue.rename(codec.well_formed(session_id), RenameRequest(title, at))

    async def find_message(self, session_id: str, key: str) -> int | None:
        """Implement `EventLog.find_message`."""
        session = await self._find_session(session_id, ("ordinal", "tail.keys"))
        row_id: Document = {"s": session["ordinal"], "k": codec.well_formed(key)}
        rows = await self._find(self._database.message_keys, {"_id": row_id})
        newest = [row for row in session["tail"].get("keys", ()) if row["_id"] == row_id]
        return next((int(row["number"]) for row in (*rows, *newest)), None)

    async def tokens_of_owner(self, session_id: str, *, day: int) -> int:
        """Implement `EventLog.tokens_of_owner`."""
        session = await self._find_session(session_id, ("owner",))
        rows = await self._find(self._database.daily_tokens, {"_id": session["owner"], "day": {"$gte": day}})
        return int(rows[0]["tokens"]) if rows else 0

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        """Implement `EventLog.read`."""
        session = await self._find_session(session_id, _EVENT_FIELDS)
        ordinal, last_event, tail = session["ordinal"], session["last_event"], session["tail"].get("events", ())
        after = max(after, 0)
        if after >= last_event or limit <= 0:
            return []
        rows: list[Document] = []
        if after < last_event - len(tail):
            span = _span(codec.event_key(ordinal, after + 1), codec.event_key(ordinal, last_event))
            rows = await self._find(self._database.events, {"_id": span}, sort=_BY_KEY, limit=limit)
        return codec.take(_contiguous([*rows, *tail], after, limit), max_bytes)

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """Implement `EventLog.unread_messages`."""
        session = await self._find_session(session_id, _EVENT_FIELDS)
        first = codec.event_key(session["ordinal"], max(after, 0) + 1)
        last = codec.event_key(session["ordinal"], session["last_event"])
        query: Document = {"speaker": codec.USER, "_id": _span(first, last)}
        rows = await self._find(self._database.events, query, sort=_BY_KEY, hint=MESSAGES_INDEX)
        tail = session["tail"].get("events", ())
        newest = [row for row in tail if row.get("speaker") == codec.USER and row["_id"] >= first]
        return [
            UnreadMessage(number=row["_id"] & codec.MAX_NUMBER, content=orjson.loads(row["data"])["content"])
            for row in _joined(rows, newest)
        ]

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """Implement `EventLog.load_checkpoint`."""
        names = ("model", "given_title", "title", "origin")
        session = await self._find_session(session_id, ("checkpoint", *names))
        choices = {name: session.get(name, "") for name in names}
        return codec.decode_checkpoint(session["checkpoint"], **choices)

    async def load_transcript(
        self, session_id: str, transcript: TranscriptName, *, after: int = 0, limit: int | None = None
    ) -> Sequence[TranscriptEntry]:
        """Implement `EventLog.load_transcript`."""
        session = await self._find_session(session_id, _TRANSCRIPT_FIELDS)
        ordinal, length = session["ordinal"], session[f"{transcript}_messages"]
        first = codec.transcript_key(ordinal, transcript, after + 1)
        end = length if limit is None else min(length, after + limit)
        last = codec.transcript_key(ordinal, transcript, end)
        rows = await self._find(self._database.transcripts, {"_id": _span(first, last)}, sort=_BY_KEY)
        newest = [row for row in session["tail"].get("messages", ()) if first <= row["_id"] <= last]
        return codec.decode_messages([row["data"] for row in _joined(rows, newest)])


def _span(first: int, last: int) -> Document:
    return {"$gte": first, "$lte": last}


def _joined(rows: Sequence[Document], tail: Sequence[Document]) -> list[Document]:
    """Return the rows of both in the order of their keys, each once."""
    by_key = {row["_id"]: row for row in (*rows, *tail)}
    return [by_key[key] for key in sorted(by_key)]


def _contiguous(rows: Sequence[Document], after: int, limit: int) -> list[EventRecord]:
    """Return the events that follow `after` without a gap. A row may be there twice."""
    records: list[EventRecord] = []
    for row in rows:
        number = row["_id"] & codec.MAX_NUMBER
        if number == after + len(records) + 1 and len(records) < limit:
            records.append(EventRecord(number, row["type"], row["data"]))
    return records
