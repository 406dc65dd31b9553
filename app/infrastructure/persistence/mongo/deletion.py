"""Deletion of sessions: the document at once, the rows in parts, even if the deleting process dies in between."""

import asyncio
import logging
from contextlib import suppress

from app.domain.errors import NotFound, StoreUnavailable
from app.infrastructure.persistence.codec import event_keys, transcript_keys
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.client import Collection, Document, MongoDatabase

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 2000
"""Maximum number of rows that one operation deletes, so that other writes need not wait long."""

_SCREENSHOTS_AT_ONCE = 100
"""The same for screenshots, which may have megabytes where an event has one or two KiB."""

_RETENTION_SECONDS = 15
"""Seconds for which a deletion is remembered: longer than a write in flight of another process can still add rows."""

_ROUND_SECONDS = 20.0
"""Seconds between two searches for unfinished deletions."""


class SessionDeleter:
    """Deletes sessions. A document in `deletions` is the intention; any process that finds one carries it out."""

    def __init__(self, database: MongoDatabase, availability: StoreAvailability) -> None:
        self._database = database
        self._availability = availability
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to finish the deletions that were left unfinished, by any process."""
        self._task = asyncio.create_task(self._run(), name="mongo-deletion")

    async def close(self) -> None:
        """Stop. Other processes, or the next start, finish what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    async def delete_session(self, session_id: str, owner: str) -> int:
        """Delete the session's document and return its ordinal, for `delete_rows`.

        Raises:
            NotFound: The session does not exist, or belongs to another owner.
        """
        database, write = self._database, self._availability.write
        query = {"_id": session_id, "owner": owner}
        found = await write(lambda: database.sessions.find_one(query, {"ordinal": 1}))
        if found is None:
            raise NotFound("no such session")
        ordinal = int(found["ordinal"])
        now: Document = {"$currentDate": {"at": True}}
        marked = await write(lambda: database.deletions.update_one({"_id": ordinal}, now, upsert=True))
        deleted = await write(lambda: database.sessions.delete_one({"_id": session_id, "ordinal": ordinal}))
        if not deleted.deleted_count and marked.upserted_id is None:
            raise NotFound("no such session")
        return ordinal

    async def delete_rows(self, ordinal: int) -> None:
        """Delete the rows of a deleted session. A later round repeats what fails."""
        database = self._database
        names = ({"s": ordinal}, {"s": ordinal + 1})
        with suppress(StoreUnavailable):
            await self._availability.write(lambda: database.sessions.delete_one({"ordinal": ordinal}))
            await self._delete_range(database.events, *event_keys(ordinal), _ROWS_AT_ONCE)
            await self._delete_range(database.transcripts, *transcript_keys(ordinal), _ROWS_AT_ONCE)
            await self._delete_range(database.message_keys, *names, _ROWS_AT_ONCE)
            await self._delete_range(database.screenshots, *names, _SCREENSHOTS_AT_ONCE)
            await self._availability.write(lambda: database.tickets.delete_many({"session": ordinal}))

    async def _delete_range(self, collection: Collection, first: object, end: object, at_once: int) -> None:
        """Delete the rows with an id from `first` to before `end`, a limited number at once."""
        query: Document = {"_id": {"$gte": first, "$lt": end}}
        while True:
            rows = await self._availability.write(
                lambda: collection.find(query, {"_id": 1}, sort=[("_id", 1)], limit=at_once).to_list(None)
            )
            if rows:
                part: Document = {"_id": {"$gte": first, "$lte": rows[-1]["_id"]}}
                await self._availability.write(lambda p=part: collection.delete_many(p))
            if len(rows) < at_once:
                return

    async def _run(self) -> None:
        while True:
            try:
                await self._finish_deletions()
            except StoreUnavailable:
                pass  # the next round tries again
            except Exception:  # the root of a round: a defect must not end the later rounds
                log.exception("deleting the rows of deleted sessions failed; the next round tries again")
            await asyncio.sleep(_ROUND_SECONDS)

    async def _finish_deletions(self) -> None:
        """Carry out every deletion, and forget those that are old: no write in flight can add rows to them."""
        deletions, write = self._database.deletions, self._availability.write
        age: Document = {"$subtract": ["$$NOW", "$at"]}
        fields: Document = {"is_old": {"$gte": [age, _RETENTION_SECONDS * 1000]}}
        for deletion in await write(lambda: deletions.find({}, fields).to_list(None)):
            await self.delete_rows(deletion["_id"])
            if deletion["is_old"]:
                await write(lambda d=deletion: deletions.delete_one({"_id": d["_id"]}))
