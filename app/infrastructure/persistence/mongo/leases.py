"""The leases over MongoDB: fields of the session's document, with times by the server's clock."""

import time
from collections.abc import Sequence

from app.domain.errors import NotFound
from app.domain.repositories.leases import Lease
from app.infrastructure.persistence.codec import well_formed
from app.infrastructure.persistence.mongo.client import Document
from app.infrastructure.persistence.mongo.repositories import MongoRepository

_LEASE_FIELDS = ("lease", "last_user_message", "stop_up_to")
_RELEASED: Document = {"lease.holder": ""}
_RELEASED_OR_EXPIRED: Document = {"$or": [_RELEASED, {"$expr": {"$lte": ["$lease.until", "$$NOW"]}}]}

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
        change: Document = {"$set": {"lease.holder": "", "lease.until": "$$NOW"}}
        released = await self._update(query, change, ("status",))
        return released is not None and released["status"] == "running"

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        """Implement `LeaseRepository.take_over`."""
        taken = await self._update({"_id": well_formed(session_id)}, _grant(holder, seconds))
        if taken is None:
            raise NotFound("no such session")
        before = taken["lease"]["before"]
        return before["holder"] if before["was_valid"] else None

    async def list_claimable(self, *, limit: int) -> Sequence[str]:
        """Implement `LeaseRepository.list_claimable`."""
        if limit <= 0:
            return []
        # Each branch has an index of its own, which holds only the sessions of that branch.
        free = self._is_free()
        query: Document = {"$or": [{"status": "running", **free}, {"stop_up_to": {"$gte": 0}, **free}]}
        order = [("lease.until", 1), ("_id", 1)]
        rows = await self._find(self._database.sessions, query, ("_id",), sort=order, limit=limit)
        return [row["_id"] for row in rows]

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
        in_grace = time.monotonic() < self._availability.recovered_at + _GRACE_SECONDS
        return _RELEASED if in_grace else _RELEASED_OR_EXPIRED

    async def _update(self, query: Document, stage: Document, fields: Sequence[str] = _LEASE_FIELDS) -> Document | None:
        """Update one session with a pipeline stage. Return the updated document, None if no session matches."""
        sessions = self._database.sessions
        return await self._availability.read(
            lambda: sessions.find_one_and_update(query, [stage], fields, return_document=True)
        )


def _from_now(seconds: float) -> Document:
    return {"$add": ["$$NOW", max(round(seconds * 1000), 0)]}


def _grant(holder: str, seconds: float) -> Document:
    """Return the stage that gives the lease to `holder` under a new token; `before` keeps the previous holder."""
    was_valid: Document = {"$and": [{"$ne": ["$lease.holder", ""]}, {"$gt": ["$lease.until", "$$NOW"]}]}
    return {
        "$set": {
            "lease": {
                # A literal, because a pipeline takes a text that begins with `$` for the name of a field.
                "holder": {"$literal": well_formed(holder)},
                "until": _from_now(seconds),
                "token": {"$add": ["$lease.token", 1]},
                "before": {"holder": "$lease.holder", "was_valid": was_valid},
            }
        }
    }


def _lease(found: Document, *, previous_holder_lost: bool = False) -> Lease:
    return Lease(
        session_id=found["_id"],
        token=found["lease"]["token"],
        last_user_message=found["last_user_message"],
        stop_up_to=found.get("stop_up_to"),
        previous_holder_lost=previous_holder_lost,
    )
