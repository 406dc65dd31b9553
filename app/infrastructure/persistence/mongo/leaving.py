"""Deleted sessions: their document goes at once, their rows a part at a time, whoever dies in between."""

import asyncio
import logging
from contextlib import suppress

from app.domain.errors import NotFound, StoreUnavailable
from app.infrastructure.persistence.mongo.collection import Collection, Document
from app.infrastructure.persistence.mongo.driver import Driver
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.ledger import Ledger
from app.infrastructure.persistence.rows import event_key

log = logging.getLogger(__name__)

_AT_ONCE = 2000
_SCREENSHOTS_AT_ONCE = 100
"""Each may have megabytes, an event has one or two KiB."""

_LINGER_SECONDS = 15
"""How long a mark stays: longer than a write that another process had under way can still put rows behind it."""

_ROUND_SECONDS = 20.0
"""Between two looks at what is left."""


class Leaving:
    """The marks of sessions that are being deleted. A mark is the intention: who finds one carries it out."""

    def __init__(self, driver: Driver, gate: Gate, ledger: Ledger) -> None:
        self._driver = driver
        self._gate = gate
        self._ledger = ledger
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to clear away what is left, of other processes too."""
        self._task = asyncio.create_task(self._rounds(), name="mongo-leaving")

    async def close(self) -> None:
        """Stop clearing away; what is left is for others, or for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    async def take_away(self, session_id: str, owner: str) -> int:
        """The owner's session is gone on return, for everybody; answers its ordinal, for `clear`.

        Raises:
            NotFound: no such session, or it is somebody else's.
        """
        tables = self._ledger.tables
        query = {"_id": session_id, "owner": owner}
        found = await self._gate.write(lambda: tables.sessions.find_one(query, {"ordinal": 1}))
        if found is None:
            raise NotFound("no such session")
        ordinal = int(found["ordinal"])
        mark: Document = {"$currentDate": {"at": True}}
        marked = await self._gate.write(lambda: tables.leaving.update_one({"_id": ordinal}, mark, upsert=True))
        gone = await self._gate.write(lambda: tables.sessions.delete_one({"_id": session_id, "ordinal": ordinal}))
        if not gone.deleted_count and marked.upserted_id is None:
            raise NotFound("no such session")
        return ordinal

    async def clear(self, ordinal: int) -> None:
        """Remove, a part at a time, what a deleted session left behind.

        What does not succeed is done in a later round.
        """
        tables = self._ledger.tables
        events = (event_key(ordinal, 0), event_key(ordinal + 1, 0))
        transcripts = (ordinal << 33, ordinal + 1 << 33)
        names = ({"s": ordinal}, {"s": ordinal + 1})
        with suppress(StoreUnavailable):
            await self._gate.write(lambda: tables.sessions.delete_one({"ordinal": ordinal}))
            await self._remove(tables.events, *events, _AT_ONCE)
            await self._remove(tables.transcripts, *transcripts, _AT_ONCE)
            await self._remove(tables.keys, *names, _AT_ONCE)
            await self._remove(tables.screenshots, *names, _SCREENSHOTS_AT_ONCE)
            await self._gate.write(lambda: tables.tickets.delete_many({"session": ordinal}))

    async def _remove(self, table: Collection, first: object, end: object, at_once: int) -> None:
        """Every row from `first` to before `end`, in bounded portions: others want to write meanwhile."""
        span: Document = {"_id": {"$gte": first, "$lt": end}}
        while True:
            rows = await self._gate.write(
                lambda: table.find(span, {"_id": 1}, sort=[("_id", 1)], limit=at_once).to_list(None)
            )
            if not rows:
                return
            part: Document = {"_id": {"$gte": first, "$lte": rows[-1]["_id"]}}
            await self._gate.write(lambda p=part: table.delete_many(p))
            if len(rows) < at_once:
                return

    async def _rounds(self) -> None:
        while True:
            try:
                await self._round()
            except StoreUnavailable:
                pass  # the next round, then
            except Exception:  # the root of a round: a fault in one must not end those that follow
                log.exception("what deleted sessions left behind could not be cleared away")
            await asyncio.sleep(_ROUND_SECONDS)

    async def _round(self) -> None:
        """Clear away behind every mark. Those that are old enough go, since nothing can come behind them any more."""
        tables = self._ledger.tables
        age: Document = {"$subtract": ["$$NOW", "$at"]}
        fields: Document = {"old": {"$gte": [age, _LINGER_SECONDS * 1000]}}
        for mark in await self._gate.write(lambda: tables.leaving.find({}, fields).to_list(None)):
            await self.clear(mark["_id"])
            if mark["old"]:
                gone: Document = {"_id": mark["_id"]}
                await self._gate.write(lambda g=gone: tables.leaving.delete_one(g))
