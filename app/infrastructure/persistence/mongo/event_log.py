"""The event_log over MongoDB."""

from collections.abc import Sequence

import orjson

from app.domain.errors import NotFound
from app.domain.models.event import EventRecord
from app.domain.models.message import Message
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.repositories.event_log import Commit, StoredMessage, UnreadMessage
from app.infrastructure.persistence.codec import decode_messages, decode_run
from app.infrastructure.persistence.listing import well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.draft import Draft, tail_of
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.lanes import Lanes, Written
from app.infrastructure.persistence.mongo.ledger import Ledger
from app.infrastructure.persistence.mongo.schema import SPOKEN
from app.infrastructure.persistence.rows import LAST_NUMBER, USER, event_key, transcript_key

_WHERE: Document = {"ordinal": 1, "head": 1, "tail.events": 1}
_SAID: Document = {"ordinal": 1, "talk": 1, "work": 1, "tail.said": 1}
_LENGTHS: dict[TranscriptName, str] = {"planner": "talk", "executor": "work"}
"""Names of the fields with the lengths of the transcripts."""
_RUN: Document = {"run": 1}


class MongoEventLog:
    """A `EventLog` (see there). Writes go through the session's lane.

    A reader looks at the session first, which says how far it goes, and at the rows then: each is among those, or was
    in the tail at the first look.
    """

    def __init__(self, gate: Gate, ledger: Ledger, lanes: Lanes) -> None:
        self._gate = gate
        self._ledger = ledger
        self._lanes = lanes

    async def commit(self, session_id: str, change: Commit) -> Sequence[EventRecord]:
        """See `EventLog.commit`.

        Raises:
            TooLarge: more than a document can hold.
        """

        def work(draft: Draft) -> Written[Sequence[EventRecord]]:
            records = draft.commit(change)
            return Written(records, records)

        return await self._lanes.fold(well_formed(session_id), work)

    async def append_user_message(self, session_id: str, content: str, *, at: int, key: str | None) -> StoredMessage:
        """See `EventLog.append_user_message`."""
        kept = None if key is None else well_formed(key)

        def work(draft: Draft) -> Written[StoredMessage]:
            return Written(*draft.receive(content, at, kept))

        return await self._gate.unless_closed(self._lanes.fold(well_formed(session_id), work, key=kept))

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        """See `EventLog.read`."""
        found = await self._look(session_id, _WHERE)
        after = max(after, 0)
        tail = tail_of(found).events
        if after >= found["head"] or limit <= 0:
            return []
        rows: list[Document] = []
        if after < found["head"] - len(tail):
            span = _span(event_key(found["ordinal"], after + 1), event_key(found["ordinal"], found["head"]))
            rows = await self._gate.read(
                lambda: self._ledger.tables.events.find({"_id": span}, sort=[("_id", 1)], limit=limit).to_list(None)
            )
        return _contiguous([*rows, *tail], after, limit)

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """See `EventLog.unread_messages`."""
        found = await self._look(session_id, _WHERE)
        ordinal = found["ordinal"]
        first = event_key(ordinal, max(after, 0) + 1)
        query: Document = {"speaker": USER, "_id": _span(first, event_key(ordinal, found["head"]))}
        rows = await self._gate.read(
            lambda: self._ledger.tables.events.find(query, sort=[("_id", 1)], hint=SPOKEN).to_list(None)
        )
        newer = [row for row in tail_of(found).events if row.get("speaker") == USER and row["_id"] >= first]
        return [
            UnreadMessage(number=row["_id"] & LAST_NUMBER, content=orjson.loads(row["data"])["content"])
            for row in _joined(rows, newer)
        ]

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """See `EventLog.load_checkpoint`."""
        run = (await self._look(session_id, _RUN))["run"]
        return Checkpoint() if run is None else decode_run(run)

    async def load_transcript(self, session_id: str, thread: TranscriptName) -> Sequence[Message]:
        """See `EventLog.load_transcript`."""
        found = await self._look(session_id, _SAID)
        length = found[_LENGTHS[thread]]
        first, last = (transcript_key(found["ordinal"], thread, position) for position in (1, length))
        rows = await self._gate.read(
            lambda: self._ledger.tables.transcripts.find({"_id": _span(first, last)}, sort=[("_id", 1)]).to_list(None)
        )
        newer = [row for row in tail_of(found).said if first <= row["_id"] <= last]
        return decode_messages([row["data"] for row in _joined(rows, newer)])

    async def _look(self, session_id: str, fields: Document) -> Document:
        query = {"_id": well_formed(session_id)}
        found = await self._gate.read(lambda: self._ledger.tables.sessions.find_one(query, fields))
        if found is None:
            raise NotFound("no such session")
        return found


def _span(first: int, last: int) -> Document:
    return {"$gte": first, "$lte": last}


def _joined(rows: Sequence[Document], tail: Sequence[Document]) -> list[Document]:
    """Rows, with what of the tail was not yet among them."""
    there = {row["_id"] for row in rows}
    return sorted((*rows, *(row for row in tail if row["_id"] not in there)), key=_key)


def _key(row: Document) -> int:
    return row["_id"]


def _contiguous(rows: Sequence[Document], after: int, limit: int) -> list[EventRecord]:
    """The records that follow `after` one by one; a row that is there twice counts once."""
    records: list[EventRecord] = []
    for row in rows:
        number = row["_id"] & LAST_NUMBER
        if number == after + len(records) + 1 and len(records) < limit:
            records.append(EventRecord(number, row["type"], row["data"]))
    return records
