"""The leases over MongoDB: fields of the session's document, by the server's clock."""

import time
from collections.abc import Sequence

from app.domain.errors import NotFound
from app.domain.repositories.leases import Lease
from app.infrastructure.persistence.listing import well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.ledger import Ledger

_SHOWN: Document = {"lease": 1, "last_words": 1, "stop_up_to": 1}
_OVER: Document = {"$lte": ["$lease.until", "$$NOW"]}
_UNHELD: Document = {"lease.holder": ""}
_FREE: Document = {"$or": [_UNHELD, {"$expr": _OVER}]}

_GRACE_SECONDS = 3.0
"""After the store was away: for so long a lease that ran out is still its holder's. It could not be renewed while
nobody could, which says nothing about who holds it; who lives has renewed it by then."""


class MongoLeases:
    """A `LeaseRepository` (see there)."""

    def __init__(self, gate: Gate, ledger: Ledger) -> None:
        self._gate = gate
        self._ledger = ledger

    async def acquire(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
        """See `LeaseRepository.acquire`."""
        key = well_formed(session_id)
        taken = await self._change({"_id": key, **self._free()}, _grant(holder, seconds))
        if taken is None:
            await self._exists(key)
            return None
        return _lease(taken)

    async def renew(self, *, holder: str, seconds: float) -> Sequence[Lease]:
        """See `LeaseRepository.renew`."""
        sessions = self._ledger.tables.sessions
        query = {"lease.holder": well_formed(holder)}
        later = [{"$set": {"lease.until": _from_now(seconds)}}]
        await self._gate.read(lambda: sessions.update_many(query, later))
        rows = await self._gate.read(lambda: sessions.find(query, _SHOWN).to_list(None))
        return [_lease(row, renewed=True) for row in rows]

    async def release(self, lease: Lease) -> bool:
        """See `LeaseRepository.release`."""
        query: Document = {"_id": well_formed(lease.session_id), "lease.token": lease.token}
        given_back: Document = {"$set": {"lease.holder": "", "lease.until": "$$NOW"}}
        found = await self._change(query, given_back, {"status": 1})
        return found is not None and found["status"] == "active"

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        """See `LeaseRepository.take_over`."""
        key = well_formed(session_id)
        taken = await self._change({"_id": key}, _grant(holder, seconds))
        if taken is None:
            raise NotFound("no such session")
        before = taken["lease"]["before"]
        return before["holder"] if before["ran"] else None

    async def list_claimable(self, *, limit: int) -> Sequence[str]:
        """See `LeaseRepository.list_claimable`."""
        # Each branch has an index of its own, over the sessions that it is about and no others.
        free = self._free()
        query: Document = {"$or": [{"status": "active", **free}, {"stop_up_to": {"$gte": 0}, **free}]}
        order = [("lease.until", 1), ("_id", 1)]
        sessions = self._ledger.tables.sessions
        if limit <= 0:
            return []
        rows = await self._gate.read(lambda: sessions.find(query, {"_id": 1}, sort=order, limit=limit).to_list(None))
        return [row["_id"] for row in rows]

    async def request_stop(self, session_id: str, *, up_to: int) -> None:
        """See `LeaseRepository.request_stop`."""
        query = {"_id": well_formed(session_id)}
        change: Document = {"$max": {"stop_up_to": max(up_to, 0)}}
        result = await self._gate.read(lambda: self._ledger.tables.sessions.update_one(query, change))
        if not result.matched_count:
            raise NotFound("no such session")

    async def requested_stop(self, session_id: str) -> int | None:
        """See `LeaseRepository.requested_stop`."""
        return (await self._exists(well_formed(session_id))).get("stop_up_to")

    async def clear_stop_request(self, session_id: str, *, up_to: int) -> None:
        """See `LeaseRepository.clear_stop_request`."""
        query: Document = {"_id": well_formed(session_id), "stop_up_to": {"$lte": up_to}}
        change: Document = {"$unset": {"stop_up_to": ""}}
        await self._gate.read(lambda: self._ledger.tables.sessions.update_one(query, change))

    def _free(self) -> Document:
        return _UNHELD if time.monotonic() < self._gate.returned + _GRACE_SECONDS else _FREE

    async def _change(self, query: Document, change: Document, fields: Document = _SHOWN) -> Document | None:
        sessions = self._ledger.tables.sessions
        return await self._gate.read(
            lambda: sessions.find_one_and_update(query, [change], fields, return_document=True)
        )

    async def _exists(self, session_id: str) -> Document:
        sessions = self._ledger.tables.sessions
        found = await self._gate.read(lambda: sessions.find_one({"_id": session_id}, {"stop_up_to": 1}))
        if found is None:
            raise NotFound("no such session")
        return found


def _from_now(seconds: float) -> Document:
    return {"$add": ["$$NOW", max(round(seconds * 1000), 0)]}


def _grant(holder: str, seconds: float) -> Document:
    """The stage that gives the lease to `holder`, under a new token; `before` tells who had it, and whether it ran."""
    ran: Document = {"$and": [{"$ne": ["$lease.holder", ""]}, {"$gt": ["$lease.until", "$$NOW"]}]}
    return {
        "$set": {
            "lease": {
                # Not bare: in a pipeline a word that begins with `$` is the name of a field.
                "holder": {"$literal": well_formed(holder)},
                "until": _from_now(seconds),
                "token": {"$add": ["$lease.token", 1]},
                "before": {"holder": "$lease.holder", "ran": ran},
            }
        }
    }


def _lease(found: Document, *, renewed: bool = False) -> Lease:
    lease = found["lease"]
    return Lease(
        session_id=found["_id"],
        token=lease["token"],
        last_user_message=found["last_words"],
        stop_up_to=found.get("stop_up_to"),
        previous_holder_lost=not renewed and bool(lease["before"]["holder"]),
    )
