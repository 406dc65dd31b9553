"""How a batch gets into the database: compare and set on the session's document, then the copy of its rows."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from app.domain.errors import NotFound, StoreUnavailable
from app.infrastructure.persistence.listing import well_formed
from app.infrastructure.persistence.mongo.collection import Collection, Document
from app.infrastructure.persistence.mongo.draft import HEAD_FIELDS, Draft, Encode, Head, Tail, head_of
from app.infrastructure.persistence.mongo.driver import Driver
from app.infrastructure.persistence.mongo.gate import Gate, unavailable
from app.infrastructure.persistence.mongo.schema import Tables

_PATIENCE_SECONDS = 5.0
"""How long a batch is tried again because other processes write to the same session at the same time."""

_PAUSE_SECONDS = 0.02
"""At most, before it is tried again."""


@dataclass(slots=True)
class Slot:
    """What is remembered of a session between two writes; None when nothing is."""

    head: Head | None = None


class Ledger:
    """The writing half of the store."""

    def __init__(self, driver: Driver, gate: Gate, encode: Encode) -> None:
        self._driver = driver
        self._gate = gate
        self._encode = encode
        self.tables: Tables
        """Set once the driver is open."""

    async def write(self, session_id: str, slot: Slot, keys: Sequence[str], fold: Callable[[Draft], bool]) -> None:
        """Store what `fold` puts into a draft; it is called anew whenever the session turns out to stand elsewhere.

        `fold` answers whether it refused anything: that is only believed of a session that was just looked up.

        Raises:
            NotFound: no such session.
            StoreUnavailable: see `EventLog`.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            known_before = slot.head is not None
            head = slot.head = slot.head or await self._look_up(session_id)
            head = slot.head = await self._copied(head)
            draft = Draft(head, await self._known(head, keys), self._encode)
            refused = fold(draft)
            if known_before and (refused or draft.is_idle):
                slot.head = None
                continue
            if draft.is_idle:
                return
            slot.head = None  # until it is known to be stored, nothing is known
            if await self._set(session_id, draft):
                slot.head = draft.after
                return
            if time.monotonic() > deadline:
                raise unavailable("too many write to this session at once")
            await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311

    async def ordinal(self, session_id: str) -> int | None:
        """The session's ordinal, under which its rows lie; None when there is no such session."""
        query = {"_id": well_formed(session_id)}
        found = await self._gate.read(lambda: self.tables.sessions.find_one(query, {"ordinal": 1}))
        return None if found is None else int(found["ordinal"])

    async def copy_when_possible(self, slot: Slot) -> None:
        """Copy the newest rows to where rows lie; what does not succeed is done before the next write."""
        head, slot.head = slot.head, None
        if head is not None:
            with suppress(StoreUnavailable):
                slot.head = await self._copied(head)

    async def _look_up(self, session_id: str) -> Head:
        query = {"_id": session_id}
        found = await self._gate.write(lambda: self.tables.sessions.find_one(query, HEAD_FIELDS))
        if found is None:
            raise NotFound("no such session")
        return head_of(found)

    async def _known(self, head: Head, keys: Sequence[str]) -> Mapping[str, int]:
        """Those of the keys that were seen before, and the numbers of their messages."""
        if not keys:
            return {}
        query: Document = {"_id": {"$in": [{"s": head.ordinal, "k": key} for key in dict.fromkeys(keys)]}}
        rows = await self._gate.write(lambda: self.tables.keys.find(query).to_list(None))
        return {row["_id"]["k"]: row["number"] for row in rows}

    async def _set(self, session_id: str, draft: Draft) -> bool:
        """Store the draft; False when somebody else wrote to the session, or took it away, before."""
        condition: Document = {"_id": session_id, **draft.condition}
        update = draft.update
        result = await self._gate.write(lambda: self.tables.sessions.update_one(condition, update))
        return result.matched_count == 1

    async def _copied(self, head: Head) -> Head:
        """The head once the rows of its tail lie where rows lie. Another process may be copying them as well."""
        if head.copied:
            return head
        tail, tables = head.tail, self.tables
        parts = ((tables.events, tail.events), (tables.transcripts, tail.said), (tables.keys, tail.keys))
        # Given up when the server is gone, though a row may still arrive: it is the same row whoever puts it there.
        wanted = [self._gate.read(lambda t=table, r=rows: self._insert(t, r)) for table, rows in parts if rows]
        failures = [one for one in await asyncio.gather(*wanted, return_exceptions=True) if one is not None]
        for failure in failures:
            raise failure
        return replace(head, copied=True, tail=Tail())  # not kept: there are many sessions

    async def _insert(self, table: Collection, rows: Sequence[Document]) -> None:
        try:
            await table.insert_many(rows, ordered=False)
        except self._driver.failures as error:
            if not self._driver.is_duplicate(error):
                raise
