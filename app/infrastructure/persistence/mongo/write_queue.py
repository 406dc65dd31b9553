"""Queues of the writes of one process, one for each session: writes that wait together are stored as one update."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

from app.domain.errors import StoreUnavailable
from app.domain.models.event import EventRecord
from app.domain.repositories.event_log import Commit, StoredMessage
from app.infrastructure.persistence.group_commit import GroupCommitQueue, OnCommitted, WrittenBatch
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.session_writer import KnownSession, SessionCommitter
from app.infrastructure.persistence.session_update import ReceiveRequest, RenameRequest, WriteRequest

T = TypeVar("T")

_MAX_IDLE_QUEUES = 1024
"""Maximum number of queues to keep. The first write in a new queue has to read its session."""

_MAX_BATCH = 64
"""Maximum number of writes in one update, so that the first of them does not wait long."""


@dataclass(frozen=True, slots=True)
class _ExclusiveOperation:
    run: Callable[[], Awaitable[object]]
    changes_session: bool


class _SessionQueue(GroupCommitQueue[WriteRequest | _ExclusiveOperation]):
    """The writes to one session."""

    def __init__(self, session_id: str, committer: SessionCommitter, on_committed: OnCommitted) -> None:
        super().__init__(_MAX_BATCH, on_committed)
        self._session_id = session_id
        self._committer = committer
        self._known: KnownSession | None = None
        """The session after the last batch; None if that failed or another operation changed the session."""

    async def _write(self, requests: Sequence[WriteRequest | _ExclusiveOperation]) -> WrittenBatch:
        operation = requests[0]
        if isinstance(operation, _ExclusiveOperation):
            if operation.changes_session:
                self._known = None
            return WrittenBatch([await operation.run()], ())
        known, self._known = self._known, None
        writes = cast("Sequence[WriteRequest]", requests)  # an exclusive operation has a batch of its own
        written, self._known = await self._committer.write(self._session_id, known, writes)
        return written

    async def _after_write(self) -> None:
        if (known := self._known) is not None:
            self._known = None
            self._known = await self._committer.try_to_copy_tail(known)

    def _runs_alone(self, request: WriteRequest | _ExclusiveOperation) -> bool:
        return isinstance(request, _ExclusiveOperation)


class SessionWriteQueue:
    """Writes of one process, in order for each session. Cancelling a caller that waits does not undo its write.

    Every method raises:
        StoreUnavailable: See `EventLog`.
        AnkerError: The write was refused; nothing of it is stored.
    """

    def __init__(self, availability: StoreAvailability, committer: SessionCommitter, on_committed: OnCommitted) -> None:
        self._availability = availability
        self._committer = committer
        self._on_committed = on_committed
        self._queues: dict[str, _SessionQueue] = {}
        self._closing = False

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Store a commit. Wait for the outcome even if the store becomes unavailable."""
        return await self._queue(session_id).put(commit)

    async def receive(self, session_id: str, request: ReceiveRequest) -> StoredMessage:
        """Store a user message."""
        return await self._availability.wait_while_available(self._queue(session_id).put(request))

    async def rename(self, session_id: str, request: RenameRequest) -> None:
        """Store the user's title."""
        await self._availability.wait_while_available(self._queue(session_id).put(request))

    async def run_exclusively(
        self, session_id: str, operation: Callable[[], Awaitable[T]], *, changes_session: bool
    ) -> T:
        """Run an operation alone, between the writes before and after it.

        Args:
            session_id: Session whose queue to use.
            operation: Function to call.
            changes_session: Whether the operation creates or deletes the session.
        """
        pending = self._queue(session_id).put(_ExclusiveOperation(operation, changes_session))
        return await self._availability.wait_while_available(pending)

    def refuse_pending(self, failure: StoreUnavailable) -> None:
        """Refuse every write that has not begun."""
        for queue in self._queues.values():
            queue.refuse_pending(failure)

    async def close(self) -> None:
        """Write what is waiting, unless the store is unavailable. Later writes are refused."""
        self._closing = True
        busy = [queue.wait_until_idle() for queue in self._queues.values() if not queue.is_idle]
        if busy:
            with suppress(StoreUnavailable):
                await self._availability.wait_while_available(asyncio.gather(*busy))

    def _queue(self, session_id: str) -> _SessionQueue:
        if self._closing:
            raise StoreUnavailable("the store is closed")
        self._availability.require()  # at once: the writes before this one may wait for the server
        if session_id not in self._queues:
            if len(self._queues) > _MAX_IDLE_QUEUES:
                self._queues = {key: queue for key, queue in self._queues.items() if not queue.is_idle}
            self._queues[session_id] = _SessionQueue(session_id, self._committer, self._on_committed)
        return self._queues[session_id]
