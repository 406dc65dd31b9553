"""The leases over MongoDB: fields of the session's document, with times by the server's clock."""

import time
from collections.abc import Sequence

from app.domain.errors import NotFound
from app.domain.repositories.leases import ClaimableSession, Lease
from app.infrastructure.persistence.codec import well_formed
from app.infrastructure.persistence.mongo.client import Document, aggregate
from app.infrastructure.persistence.mongo.repositories import MongoRepository

_LEASE_FIELDS = ("lease", "owner", "last_user_message", "stop_up_to")
_RELEASED: Document = {"lease.holder": ""}
_RELEASED_OR_EXPIRED: Document = {"$or": [_RELEASED, {"$expr": {"$lte": ["$lease.until", "$$NOW"]}}]}
_HAS_HOLDER: Document = {"$ne": ["$lease.holder", ""]}
_IS_LEASED: Document = {"$and": [_HAS_HOLDER, {"$gt": ["$lease.until", "$$NOW"]}]}

_GRACE_SECONDS = 3.0
"""Seconds after the store was unavailable for which an expired lease still counts as valid. Its holder could not renew
it before; a living holder has renewed it by then."""


class MongoLeases(MongoRepository):
    """Implements `LeaseRepository`."""

    async def acquire(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
        """Implement `LeaseRepository.acquire`."""
        key = well_formed(session_id)
        acquired = await self._update({"_id": key, **self._is_free()}, _grant(holder, seconds))
        if acquired is None:
            await self.requested_stop(key)  # raises `NotFound` if the session does not exist
            return None
        return _lease(acquired, previous_holder_lost=bool(acquired["lease"]["before"]["holder"]))

    async def renew(self, *, holder: str, seconds: float) -> Sequence[Lease]:
        """Implement `LeaseRepository.renew`."""
        sessions = self._database.sessions
        query = {"lease.holder": well_formed(holder)}
        change = [{"$set": {"lease.until": _from_now(seconds)}}]
        await self._availability.read(lambda: sessions.update_many(query, change))
        return [_lease(row) for row in await self._find(sessions, query, _LEASE_FIELDS)]

    async def release(self, lease: Lease) -> bool:
        """Implement `LeaseRepository.release`."""
        query: Document = {"_id": well_formed(lease.session_id), "lease.token": lease.token}
        change: Document = {"$set": {"lease.holder": "", "lease.until": "$$NOW", "waiting_since": "$$NOW"}}
        released = await self._update(query, change, ("status",))
        return released is not None and released["status"] == "running"

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        """Implement `LeaseRepository.take_over`."""
        taken = await self._update({"_id": well_formed(session_id)}, _grant(holder, seconds))
        if taken is None:
            raise NotFound("no such session")
        before = taken["lease"]["before"]
        return before["holder"] if before["was_valid"] else None

    async def list_claimable(self, *, limit: int) -> Sequence[ClaimableSession]:
        """Implement `LeaseRepository.list_claimable`."""
        if limit <= 0:
            return []
        # Each of the two queries has an index of its own, which holds only the sessions that it is about.
        sessions = self._database.sessions
        query: Document = {"stop_up_to": {"$gte": 0}, **self._is_free()}
        rows = await self._find(sessions, query, ("owner",), sort=[("stop_up_to", 1)], limit=limit)
        stopping = {row["_id"]: ClaimableSession(row["_id"], row["owner"], is_stopping=True) for row in rows}
        pipeline = _claim_order(_HAS_HOLDER if self._is_in_grace() else _IS_LEASED, limit)
        rows = await self._availability.read(lambda: aggregate(sessions, pipeline))
        running = (ClaimableSession(row["_id"], row["owner"], is_stopping=False) for row in rows)
        return [*stopping.values(), *(each for each in running if each.session_id not in stopping)][:limit]

    async def request_stop(self, session_id: str, *, up_to: int) -> None:
        """Implement `LeaseRepository.request_stop`."""
        query = {"_id": well_formed(session_id)}
        change: Document = {"$max": {"stop_up_to": max(up_to, 0)}}
        result = await self._availability.read(lambda: self._database.sessions.update_one(query, change))
        if not result.matched_count:
            raise NotFound("no such session")

    async def requested_stop(self, session_id: str) -> int | None:
        """Implement `LeaseRepository.requested_stop`."""
        return (await self._find_session(session_id, ("stop_up_to",))).get("stop_up_to")

    async def clear_stop_request(self, session_id: str, *, up_to: int) -> None:
        """Implement `LeaseRepository.clear_stop_request`."""
        query: Document = {"_id": well_formed(session_id), "stop_up_to": {"$lte": up_to}}
        change: Document = {"$unset": {"stop_up_to": ""}}
        await self._availability.read(lambda: self._database.sessions.update_one(query, change))

    def _is_free(self) -> Document:
        """Return the condition for sessions that can be leased now."""
        return _RELEASED if self._is_in_grace() else _RELEASED_OR_EXPIRED

    def _is_in_grace(self) -> bool:
        return time.monotonic() < self._availability.recovered_at + _GRACE_SECONDS

    async def _update(self, query: Document, stage: Document, fields: Sequence[str] = _LEASE_FIELDS) -> Document | None:
        """Update one session with a pipeline stage. Return the updated document, None if no session matches."""
        sessions = self._database.sessions
        return await self._availability.read(
            lambda: sessions.find_one_and_update(query, [stage], fields, return_document=True)
        )


def _from_now(seconds: float) -> Document:
    return {"$add": ["$$NOW", max(round(seconds * 1000), 0)]}


def _grant(holder: str, seconds: float) -> Document:
    """Return the stage that gives the lease to `holder` under a new token.

    `before` keeps the previous holder, and the milliseconds for which the session had work and no holder.
    """
    free_since: Document = {"$cond": [_HAS_HOLDER, "$lease.until", {"$ifNull": ["$waiting_since", "$$NOW"]}]}
    waited: Document = {"$max": [{"$subtract": ["$$NOW", free_since]}, 0]}
    return {
        "$set": {
            "lease": {
                # A literal, because a pipeline takes a text that begins with `$` for the name of a field.
                "holder": {"$literal": well_formed(holder)},
                "until": _from_now(seconds),
                "token": {"$add": ["$lease.token", 1]},
                "before": {"holder": "$lease.holder", "was_valid": _IS_LEASED, "waited": waited},
            }
        }
    }


def _claim_order(is_leased: Document, limit: int) -> list[Document]:
    """Return the pipeline that lists running sessions without a lease, see `LeaseRepository.list_claimable`."""
    rank: Document = {"$sum": 1, "window": {"documents": ["unbounded", "current"]}}
    return [
        {"$match": {"status": "running"}},
        {"$project": {"owner": 1, "waiting_since": 1, "ordinal": 1, "is_free": {"$not": [is_leased]}}},
        # The rank of a session is one more than the number of its owner's sessions that are leased or go first.
        {
            "$setWindowFields": {
                "partitionBy": "$owner",
                "sortBy": {"is_free": 1, "waiting_since": 1, "ordinal": 1},
                "output": {"rank": rank},
            }
        },
        {"$match": {"is_free": True}},
        {"$sort": {"rank": 1, "waiting_since": 1, "ordinal": 1}},
        {"$limit": limit},
        {"$project": {"owner": 1}},
    ]


def _lease(found: Document, *, previous_holder_lost: bool = False) -> Lease:
    return Lease(
        session_id=found["_id"],
        token=found["lease"]["token"],
        owner=found["owner"],
        last_user_message=found["last_user_message"],
        stop_up_to=found.get("stop_up_to"),
        previous_holder_lost=previous_holder_lost,
        waited=found["lease"].get("before", {}).get("waited", 0) / 1000,
    )
