"""The sessions over MongoDB."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.domain.errors import Conflict, NotFound, StoreUnavailable
from app.domain.models.message import Usage
from app.domain.models.session import Session, SessionPage
from app.infrastructure.persistence.listing import check_time, decode_cursor, encode_cursor, well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.draft import tail_of
from app.infrastructure.persistence.mongo.driver import Driver
from app.infrastructure.persistence.mongo.gate import Gate, unavailable
from app.infrastructure.persistence.mongo.lanes import Lanes
from app.infrastructure.persistence.mongo.leaving import Leaving
from app.infrastructure.persistence.mongo.ledger import Ledger
from app.infrastructure.persistence.mongo.schema import SPOKEN
from app.infrastructure.persistence.rows import ASSISTANT, LAST_NUMBER, event_key

_SHOWN: Document = {
    name: 1
    for name in (
        "owner",
        "title",
        "status",
        "latest_message",
        "latest_message_at",
        "unread",
        "created_at",
        "head",
        "touched",
        "ordinal",
    )
}
_READ: Document = {
    name: 1 for name in ("ordinal", "version", "head", "delivered", "unread", "tail.events._id", "tail.events.speaker")
}
_NEVER: Document = {"holder": "", "until": None, "token": 0}
_MARKS = 50
"""How often a mark is tried while others write to the session."""


class MongoSessions:
    """A `SessionRepository` (see there)."""

    def __init__(self, driver: Driver, gate: Gate, ledger: Ledger, lanes: Lanes, leaving: Leaving) -> None:
        self._driver = driver
        self._gate = gate
        self._ledger = ledger
        self._lanes = lanes
        self._leaving = leaving

    async def create(self, session_id: str, *, owner: str, at: int) -> None:
        """See `SessionRepository.create`.

        Raises:
            Conflict: there is a session of this id.
        """
        check_time(at)
        key = well_formed(session_id)
        creating = self._lanes.alone(key, lambda: self._create(key, well_formed(owner), at), forget=True)
        await self._gate.unless_closed(creating)

    async def get(self, session_id: str, *, owner: str) -> Session:
        """See `SessionRepository.get`."""
        query = {"_id": well_formed(session_id), "owner": well_formed(owner)}
        found = await self._gate.read(lambda: self._ledger.tables.sessions.find_one(query, _SHOWN))
        if found is None:
            raise NotFound("no such session")
        return _session(found)

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """See `SessionRepository.page`."""
        query: Document = {"owner": well_formed(owner)}
        if cursor is not None:
            touched, ordinal = decode_cursor(cursor)
            earlier: list[Document] = [{"touched": {"$lt": touched}}, {"ordinal": {"$lt": ordinal}}]
            query |= {"touched": {"$lte": touched}, "$or": earlier}
        # One more than asked for tells whether there is a next page.
        rows = await self._rows(query, _SHOWN, [("touched", -1), ("ordinal", -1)], max(limit, 0) + 1)
        shown = rows[: max(limit, 0)]
        more = len(rows) > len(shown) and bool(shown)
        return SessionPage(
            sessions=tuple(map(_session, shown)),
            next_cursor=encode_cursor(shown[-1]["touched"], shown[-1]["ordinal"]) if more else None,
        )

    async def list_active(self) -> Sequence[str]:
        """See `SessionRepository.list_active`."""
        rows = await self._rows({"status": "active"}, {"ordinal": 1})
        return [row["_id"] for row in sorted(rows, key=_ordinal)]

    async def list_ids(self) -> Sequence[str]:
        """See `SessionRepository.list_ids`."""
        sessions = self._ledger.tables.sessions
        rows = await self._gate.read(lambda: sessions.find({}, {"_id": 1}, hint="_id_").to_list(None))
        return [row["_id"] for row in rows]

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """See `SessionRepository.last_event_numbers`."""
        asked = list(map(well_formed, session_ids))
        rows = await self._rows({"_id": {"$in": asked}}, {"head": 1})
        return {row["_id"]: row["head"] for row in rows}

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        """See `SessionRepository.mark_delivered`."""
        key = well_formed(session_id)
        return await self._gate.unless_closed(self._lanes.alone(key, lambda: self._mark(key, number), forget=False))

    async def usage(self, session_id: str) -> Usage:
        """See `SessionRepository.usage`."""
        query = {"_id": well_formed(session_id)}
        found = await self._gate.read(lambda: self._ledger.tables.sessions.find_one(query, {"usage": 1}))
        if found is None:
            raise NotFound("no such session")
        return Usage(**found["usage"])

    async def delete(self, session_id: str, *, owner: str) -> None:
        """See `SessionRepository.delete`."""
        key, mine = well_formed(session_id), well_formed(owner)
        taking = self._lanes.alone(key, lambda: self._leaving.take_away(key, mine), forget=True)
        await self._leaving.clear(await self._gate.unless_closed(taking))

    async def check(self) -> str | None:
        """See `SessionRepository.check`. The gate knows whether the server answers; this asks if it lets us read."""
        try:
            await self._gate.read(lambda: self._ledger.tables.facts.find_one({"_id": "version"}))
        except StoreUnavailable as trouble:
            return str(trouble)
        return None

    async def _rows(
        self, query: Document, fields: Document, sort: Sequence[tuple[str, int]] | None = None, limit: int = 0
    ) -> list[Document]:
        sessions = self._ledger.tables.sessions
        return await self._gate.read(lambda: sessions.find(query, fields, sort=sort, limit=limit).to_list(None))

    async def _create(self, session_id: str, owner: str, at: int) -> None:
        tables = self._ledger.tables
        counted = await self._gate.write(
            lambda: tables.counters.find_one_and_update(
                {"_id": "sessions"}, {"$inc": {"value": 1}}, upsert=True, return_document=True
            )
        )
        if counted is None:
            raise unavailable("the database refused")
        session = _new(session_id, owner, at, counted["value"])
        if not await self._gate.write(lambda: self._insert(session)):
            raise Conflict("there is a session of this id")

    async def _insert(self, session: Document) -> bool:
        try:
            await self._ledger.tables.sessions.insert_one(session)
        except self._driver.failures as error:
            if self._driver.is_duplicate(error):
                return False
            raise
        return True

    async def _mark(self, session_id: str, number: int) -> bool:
        tables = self._ledger.tables
        for _ in range(_MARKS):
            found = await self._gate.write(lambda: tables.sessions.find_one({"_id": session_id}, _READ))
            if found is None:
                raise NotFound("no such session")
            delivered = min(number, found["head"])
            if found["unread"] == 0 or delivered <= found["delivered"]:
                return False
            unread = await self._unread(found, delivered)
            if unread == found["unread"]:
                return False  # no message in between: the old mark says the same
            before = {name: found[name] for name in ("_id", "ordinal", "version", "delivered", "unread")}
            change: Document = {"$set": {"delivered": delivered, "unread": unread}}
            result = await self._gate.write(lambda b=before, c=change: tables.sessions.update_one(b, c))
            if result.matched_count:
                return True
        raise unavailable("too many write to this session at once")

    async def _unread(self, found: Document, delivered: int) -> int:
        """The assistant's messages after `delivered`, those of the tail included."""
        tail = tail_of(found).events
        older = found["head"] - len(tail)
        count = sum(row.get("speaker") == ASSISTANT and row["_id"] & LAST_NUMBER > delivered for row in tail)
        if delivered < older:
            first, last = (event_key(found["ordinal"], number) for number in (delivered, older))
            query: Document = {"speaker": ASSISTANT, "_id": {"$gt": first, "$lte": last}}
            count += await self._gate.write(lambda: self._ledger.tables.events.count_documents(query, hint=SPOKEN))
        return count


def _new(session_id: str, owner: str, at: int, ordinal: int) -> Document:
    usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "calls": 0}
    return {
        "_id": session_id,
        "ordinal": ordinal,
        "owner": owner,
        "title": "",
        "status": "pending",
        "latest_message": "",
        "latest_message_at": None,
        "created_at": at,
        "touched": at,
        "head": 0,
        "last_words": 0,
        "delivered": 0,
        "unread": 0,
        "talk": 0,
        "work": 0,
        "usage": usage,
        "run": None,
        "lease": dict(_NEVER),
        "version": 0,
        "tail": {},
    }


def _ordinal(row: Document) -> int:
    return row["ordinal"]


def _session(found: dict[str, Any]) -> Session:
    return Session(
        id=found["_id"],
        owner=found["owner"],
        title=found["title"],
        status=found["status"],
        latest_message=found["latest_message"],
        latest_message_at=found["latest_message_at"],
        unread_count=found["unread"],
        created_at=found["created_at"],
        last_event_number=found["head"],
    )
