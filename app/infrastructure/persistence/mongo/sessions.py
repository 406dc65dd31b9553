"""The sessions over MongoDB."""

from collections.abc import Mapping, Sequence

from app.domain.errors import Conflict, NotFound, StoreUnavailable
from app.domain.models.session import Session, SessionPage
from app.infrastructure.persistence import session_summary
from app.infrastructure.persistence.codec import ASSISTANT, event_key, well_formed
from app.infrastructure.persistence.mongo.availability import StoreAvailability, store_unavailable
from app.infrastructure.persistence.mongo.client import Document, MongoDatabase, insert_missing
from app.infrastructure.persistence.mongo.deletion import SessionDeleter
from app.infrastructure.persistence.mongo.repositories import MongoRepository
from app.infrastructure.persistence.mongo.schema import CLAIMABLE_INDEX, LISTED_INDEX, MESSAGES_INDEX
from app.infrastructure.persistence.mongo.write_queue import SessionWriteQueue

_DELIVERY_FIELDS = (
    *("ordinal", "version", "last_event", "delivered", "unread"),
    *("tail.events._id", "tail.events.speaker"),
)

_DEFAULTS: Document = {"model": "", "is_pinned": False, "reasoning_tokens": 0, "cost": None}
"""Values of fields that a session may lack."""

_MAX_ATTEMPTS = 50
"""Maximum number of attempts to mark events as delivered while others write to the session."""


class MongoSessions(MongoRepository):
    """Implements `SessionRepository`."""

    def __init__(
        self,
        database: MongoDatabase,
        availability: StoreAvailability,
        queue: SessionWriteQueue,
        deleter: SessionDeleter,
    ) -> None:
        super().__init__(database, availability)
        self._queue = queue
        self._deleter = deleter

    async def create(self, session_id: str, *, owner: str, at: int, model: str = "", title: str = "") -> None:
        """Implement `SessionRepository.create`."""
        session_summary.check_timestamp(at)
        key = well_formed(session_id)
        session = _new_session(key, well_formed(owner), at)
        session |= dict.fromkeys(("title", "given_title"), well_formed(title)) | {"model": model}
        await self._queue.run_exclusively(key, lambda: self._create(session), changes_session=True)

    async def get(self, session_id: str, *, owner: str) -> Session:
        """Implement `SessionRepository.get`."""
        return _session(
            await self._find_session(session_id, session_summary.LISTED_FIELDS, owner=well_formed(owner))
        ).session

    async def get_any(self, session_id: str) -> Session:
        """Implement `SessionRepository.get_any`."""
        return _session(await self._find_session(session_id, session_summary.LISTED_FIELDS)).session

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """Implement `SessionRepository.page`."""
        query: Document = {"owner": well_formed(owner)}
        if cursor is not None:
            last_activity, ordinal = session_summary.decode_cursor(cursor)
            earlier: list[Document] = [{"last_activity": {"$lt": last_activity}}, {"ordinal": {"$lt": ordinal}}]
            query |= {"last_activity": {"$lte": last_activity}, "$or": earlier}
        # One session more than the limit tells whether there is a next page.
        order = [("last_activity", -1), ("ordinal", -1)]
        rows = await self._find(
            self._database.sessions, query, session_summary.LISTED_FIELDS, sort=order, limit=max(limit, 0) + 1
        )
        return session_summary.page_of([_session(row) for row in rows], limit)

    async def page_all(self, *, limit: int, cursor: str | None) -> SessionPage:
        """Implement `SessionRepository.page_all`."""
        _, before = session_summary.decode_cursor(cursor or session_summary.FIRST_CURSOR)
        rows = await self._find(
            self._database.sessions,
            {"ordinal": {"$lt": before}},
            session_summary.LISTED_FIELDS,
            sort=[("ordinal", -1)],
            limit=max(limit, 0) + 1,
        )
        return session_summary.page_of([_session(row) for row in rows], limit)

    async def assign_unowned(self, owner: str) -> int:
        """Implement `SessionRepository.assign_unowned`."""
        change: Document = {"$set": {"owner": well_formed(owner)}}
        result = await self._availability.write(lambda: self._database.sessions.update_many({"owner": ""}, change))
        return result.modified_count

    async def count(self, *, owner: str, up_to: int, running_only: bool = False) -> int:
        """Implement `SessionRepository.count`."""
        query: Document = {"owner": well_formed(owner)}
        index = LISTED_INDEX
        if running_only:
            query["status"] = "running"
            index = CLAIMABLE_INDEX
        sessions = self._database.sessions
        return await self._availability.read(lambda: sessions.count_documents(query, limit=up_to, hint=index))

    async def list_active(self) -> Mapping[str, str]:
        """Implement `SessionRepository.list_active`."""
        rows = await self._find(self._database.sessions, {"status": "running"}, ("ordinal", "owner"))
        return {row["_id"]: row["owner"] for row in sorted(rows, key=lambda row: row["ordinal"])}

    async def list_ids(self) -> Sequence[str]:
        """Implement `SessionRepository.list_ids`."""
        rows = await self._find(self._database.sessions, {}, ("_id",), hint="_id_")
        return [row["_id"] for row in rows]

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """Implement `SessionRepository.last_event_numbers`."""
        query: Document = {"_id": {"$in": list(map(well_formed, session_ids))}}
        rows = await self._find(self._database.sessions, query, ("last_event",))
        return {row["_id"]: row["last_event"] for row in rows}

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        """Implement `SessionRepository.mark_delivered`."""
        key = well_formed(session_id)
        return await self._queue.run_exclusively(key, lambda: self._mark_delivered(key, number), changes_session=False)

    async def set_pinned(self, session_id: str, *, owner: str, is_pinned: bool) -> None:
        """Implement `SessionRepository.set_pinned`."""
        key = well_formed(session_id)
        query: Document = {"_id": key, "owner": well_formed(owner)}
        change: Document = {"$set": {"is_pinned": is_pinned}}
        result = await self._queue.run_exclusively(
            key,
            lambda: self._availability.write(lambda: self._database.sessions.update_one(query, change)),
            changes_session=False,
        )
        if not result.matched_count:
            raise NotFound("no such session")

    async def delete(self, session_id: str, *, owner: str) -> None:
        """Implement `SessionRepository.delete`."""
        key, owner = well_formed(session_id), well_formed(owner)
        ordinal = await self._queue.run_exclusively(
            key, lambda: self._deleter.delete_session(key, owner), changes_session=True
        )
        await self._deleter.delete_rows(ordinal)

    async def check(self) -> str | None:
        """Implement `SessionRepository.check`. Read something, because availability says nothing of permissions."""
        try:
            await self._find(self._database.metadata, {"_id": "version"})
        except StoreUnavailable as error:
            return str(error)
        return None

    async def _create(self, session: Document) -> None:
        counted = await self._availability.write(
            lambda: self._database.counters.find_one_and_update(
                {"_id": "sessions"}, {"$inc": {"value": 1}}, upsert=True, return_document=True
            )
        )
        if counted is None:
            raise store_unavailable("the database refused")
        numbered = {**session, "ordinal": counted["value"]}
        if not await self._availability.write(lambda: insert_missing(self._database.sessions, [numbered])):
            raise Conflict("a session with this id exists")

    async def _mark_delivered(self, session_id: str, number: int) -> bool:
        sessions, write = self._database.sessions, self._availability.write
        for _ in range(_MAX_ATTEMPTS):
            found = await write(lambda: sessions.find_one({"_id": session_id}, _DELIVERY_FIELDS))
            if found is None:
                raise NotFound("no such session")
            delivered = min(number, found["last_event"])
            if found["unread"] == 0 or delivered <= found["delivered"]:
                return False
            unread = await self._count_unread(found, delivered)
            if unread == found["unread"]:
                return False  # no message lies between the marks, so the old one gives the same count
            condition = {name: found[name] for name in ("_id", "ordinal", "version", "delivered", "unread")}
            change: Document = {"$set": {"delivered": delivered, "unread": unread}}
            result = await write(lambda c=condition, u=change: sessions.update_one(c, u))
            if result.matched_count:
                return True
        raise store_unavailable("too many processes write to this session at once")

    async def _count_unread(self, session: Document, delivered: int) -> int:
        """Return the number of the assistant's messages after `delivered`, in the collection and in the tail."""
        first, last = (event_key(session["ordinal"], number) for number in (delivered + 1, session["last_event"]))
        query: Document = {"speaker": ASSISTANT, "_id": {"$gte": first, "$lte": last}}
        rows = await self._find(self._database.events, query, ("_id",), hint=MESSAGES_INDEX)
        tail = session["tail"].get("events", ())
        newest = [row for row in tail if row.get("speaker") == ASSISTANT and row["_id"] >= first]
        return len({row["_id"] for row in (*rows, *newest)})


def _new_session(session_id: str, owner: str, timestamp: int) -> Document:
    """Return a session without its ordinal."""
    counters = (
        *("last_event", "last_user_message", "planner_messages", "executor_messages", "delivered", "unread", "version"),
        *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "calls"),
    )
    return {
        "_id": session_id,
        "owner": owner,
        "title": "",
        "status": "pending",
        "latest_message": "",
        "latest_message_at": None,
        "created_at": timestamp,
        "last_activity": timestamp,
        **dict.fromkeys(counters, 0),
        "checkpoint": None,
        "revision": "",
        "lease": {"holder": "", "until": None, "token": 0},
        "tail": {},
    }


def _session(found: Document) -> session_summary.ListedSession:
    stored = {**_DEFAULTS, **found}
    return session_summary.listed_session(found["_id"], (stored[name] for name in session_summary.LISTED_FIELDS))
