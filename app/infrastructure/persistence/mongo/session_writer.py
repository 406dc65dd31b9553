"""Write safety of the MongoDB store: how writes to a session become one atomic update of its document.

1. The update's filter names the `version` of the document that the writer knows and, for writes under a lease, the
   fencing token. If another process has written since, the update matches nothing; the writer reads the document again
   and repeats its work. So there are no gaps in the event numbers, and no write under an old lease.
2. The update contains the new rows (events, messages, idempotency keys) as the `tail` of the document. It is stored
   completely or not at all, without a transaction: one that a killed process left open would lock the document for
   more than a minute.
3. The rows of the tail are then copied to their collections. A row's key follows from its session and number, so a copy
   may be repeated by anybody. Each writer copies the tail before it replaces the tail. Readers add the rows that they
   find only in the tail.
4. Writes are acknowledged by a majority and journaled (see `client.py`).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from app.domain.errors import AnkerError, NotFound, StoreUnavailable
from app.infrastructure.persistence.group_commit import Outcome, WrittenBatch, attempt
from app.infrastructure.persistence.mongo.availability import StoreAvailability, store_unavailable
from app.infrastructure.persistence.mongo.client import Document, MongoDatabase, insert_missing
from app.infrastructure.persistence.session_update import (
    CURSOR_FIELDS,
    EncodeEvent,
    ReceiveRequest,
    SessionCursor,
    SessionUpdate,
    WriteRequest,
)

_MAX_WRITE_BYTES = 12 * 2**20
"""Maximum bytes of the rows of one write: a document has at most 16 MiB."""

_FULL_BATCH_BYTES = 2**20
"""Bytes of rows after which the following writes wait for the next batch."""

_CONFLICT_SECONDS = 5.0
"""Maximum seconds to repeat a batch because other processes write to the same session."""

_MAX_PAUSE_SECONDS = 0.02
"""Maximum seconds to wait before a batch is repeated."""

_KNOWN_FIELDS = (*CURSOR_FIELDS, "owner", "lease.token", "version", "tail")


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A process's knowledge of a session's document: enough to write to it without reading it again."""

    cursor: SessionCursor
    owner: str
    version: int
    """Number of updates of the document."""
    tail: Document | None
    """Rows of the last update, by collection; None once they are copied."""


class SessionCommitter:
    """Writes batches to sessions, one at a time for each session."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability, encode: EncodeEvent) -> None:
        self._database = database
        self._availability = availability
        self._encode = encode

    async def write(
        self, session_id: str, known: KnownSession | None, requests: Sequence[WriteRequest]
    ) -> tuple[WrittenBatch, KnownSession]:
        """Write a batch, and return its result and the session after it.

        Args:
            session_id: Session to write to.
            known: Result of the previous batch; None if it is not known.
            requests: Writes in order, at least one.

        Raises:
            NotFound: The session does not exist.
            StoreUnavailable: See `EventLog`.
        """
        deadline = time.monotonic() + _CONFLICT_SECONDS
        while True:
            session = await self.copy_tail(known or await self._load(session_id))
            update = SessionUpdate(
                session_id,
                session.cursor,
                self._encode,
                message_keys=await self._find_keys(session.cursor, requests),
                max_bytes=_MAX_WRITE_BYTES,
            )
            outcomes = _apply(update, requests)
            if known is not None and (update.is_empty or any(isinstance(each, AnkerError) for each in outcomes)):
                # What is known may be outdated: only a session that was just read justifies a refusal.
                known = None
                continue
            if update.is_empty:
                return WrittenBatch(outcomes, ()), session
            stored = await self._store(session_id, session, update)
            if stored is not None:
                await self._count_tokens(stored.owner, update)
                return WrittenBatch(outcomes, update.committed), stored
            if time.monotonic() > deadline:
                raise store_unavailable("too many processes write to this session at once")
            known = None
            await asyncio.sleep(random.uniform(0, _MAX_PAUSE_SECONDS))  # noqa: S311

    async def copy_tail(self, session: KnownSession) -> KnownSession:
        """Copy the rows of the tail to their collections. Other processes may copy them at the same time.

        Raises:
            StoreUnavailable: Not every row was copied.
        """
        if session.tail is None:
            return session
        copies: list[Awaitable[bool]] = []
        for name, collection in (
            ("events", self._database.events),
            ("messages", self._database.transcripts),
            ("keys", self._database.message_keys),
        ):
            if rows := session.tail.get(name):
                # Abandoned when the server is lost. A row that still arrives is the row that the next writer inserts.
                copies.append(self._availability.read(lambda c=collection, r=rows: insert_missing(c, r)))
        for result in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        return replace(session, tail=None)

    async def try_to_copy_tail(self, session: KnownSession) -> KnownSession | None:
        """Copy the tail. Return None if that failed: the next writer reads the session and copies the tail."""
        with suppress(StoreUnavailable):
            return await self.copy_tail(session)
        return None

    async def _load(self, session_id: str) -> KnownSession:
        query = {"_id": session_id}
        found = await self._availability.write(lambda: self._database.sessions.find_one(query, _KNOWN_FIELDS))
        if found is None:
            raise NotFound("no such session")
        cursor = SessionCursor(*(found[name] for name in CURSOR_FIELDS), fencing_token=found["lease"]["token"])
        return KnownSession(cursor, found["owner"], found["version"], found["tail"])

    async def _find_keys(self, cursor: SessionCursor, requests: Sequence[WriteRequest]) -> dict[str, int]:
        """Return the stored idempotency keys among those of `requests`, with the numbers of their messages."""
        asked = {each.key for each in requests if isinstance(each, ReceiveRequest) and each.key is not None}
        if not asked:
            return {}
        query: Document = {"_id": {"$in": [{"s": cursor.ordinal, "k": key} for key in asked]}}
        rows = await self._availability.write(lambda: self._database.message_keys.find(query).to_list(None))
        return {row["_id"]["k"]: row["number"] for row in rows}

    async def _store(self, session_id: str, session: KnownSession, update: SessionUpdate) -> KnownSession | None:
        """Update the document and return what is then known of it.

        Return None if another process wrote to the session, or deleted it, in between.
        """
        condition: Document = {"_id": session_id, "ordinal": session.cursor.ordinal, "version": session.version}
        if update.is_fenced:
            condition["lease.token"] = session.cursor.fencing_token
        tail = _tail(update)
        change = _change(update, tail)
        result = await self._availability.write(lambda: self._database.sessions.update_one(condition, change))
        if not result.matched_count:
            return None
        return KnownSession(update.cursor, session.owner, session.version + 1, tail or session.tail)

    async def _count_tokens(self, owner: str, update: SessionUpdate) -> None:
        """Count the tokens of an update that is stored. If the store is lost at this moment, they are not counted."""
        tokens_of = self._database.daily_tokens
        for day, tokens in update.daily_tokens.items():
            total: Document = {"$cond": [{"$lt": ["$day", day]}, tokens, {"$add": ["$tokens", tokens]}]}
            change: list[Document] = [{"$set": {"tokens": total, "day": {"$max": ["$day", day]}}}]
            with suppress(StoreUnavailable):
                await self._availability.write(lambda c=change: tokens_of.update_one({"_id": owner}, c, upsert=True))


def _apply(update: SessionUpdate, requests: Sequence[WriteRequest]) -> list[Outcome]:
    """Apply the requests until the batch is full."""
    outcomes: list[Outcome] = []
    for request in requests:
        if update.size > _FULL_BATCH_BYTES:
            break
        outcomes.append(attempt(lambda r=request: update.apply(r)))
    return outcomes


def _change(update: SessionUpdate, tail: Document) -> Document:
    """Return the update as MongoDB takes it. An empty `tail` leaves the stored one as it is."""
    fields: Document = dict(update.fields)
    if update.checkpoint is not None:
        fields |= {"checkpoint": update.checkpoint, "revision": update.cursor.revision}
    if tail:
        fields["tail"] = tail
    change: Document = {"$inc": {"version": 1, **update.increments}}
    if update.fields.get("status") == "running":
        change["$currentDate"] = {"waiting_since": True}
    return {**change, "$set": fields} if fields else change


def _tail(update: SessionUpdate) -> Document:
    """Return the new rows as documents of their collections; empty if there are none."""
    ordinal = update.cursor.ordinal
    events: list[Document] = []
    for row in update.events:
        speaker = {} if row.speaker is None else {"speaker": row.speaker}
        events.append({"_id": row.key, "type": row.type, **speaker, "data": row.data})
    messages = [{"_id": row.key, "data": row.data} for row in update.messages]
    keys = [{"_id": {"s": ordinal, "k": key}, "number": number} for key, number in update.new_keys.items()]
    tail: Document = {"events": events, "messages": messages, "keys": keys}
    return {name: rows for name, rows in tail.items() if rows}
