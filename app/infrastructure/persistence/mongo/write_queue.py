"""Queues of the writes of one process, one for each session: writes that wait together are stored as one update."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from app.domain.errors import StoreUnavailable
from app.domain.models.event import EventRecord
from app.domain.repositories.event_log import Commit, StoredMessage
from app.infrastructure.persistence.mongo.availability import StoreAvailability
from app.infrastructure.persistence.mongo.session_writer import KnownSession, SessionCommitter
from app.infrastructure.persistence.session_update import ReceiveRequest, WriteRequest
from app.infrastructure.persistence.write_requests import OnCommitted, PendingWrite, fail, settle

T = TypeVar("T")

_MAX_QUEUES = 1024
"""Maximum number of idle queues to keep. The first write in a new queue has to read its session."""

_MAX_BATCH = 64
"""Maximum number of writes in one update, so that the first of them does not wait long."""


@dataclass(frozen=True, slots=True)
class _ExclusiveOperation:
    run: Callable[[], Awaitable[object]]
    changes_session: bool


_Pending = PendingWrite[WriteRequest | _ExclusiveOperation]


@dataclass(slots=True)
class _SessionQueue:
    known: KnownSession | None = None
    pending: deque[_Pending] = field(default_factory=deque[_Pending])
    task: asyncio.Task[None] | None = None


class SessionWriteQueue:
    """Writes of one process, in order for each session. Cancelling a caller that waits does not undo its write.

    Every method raises, itself or through its future:
        StoreUnavailable: See `EventLog`.
        AnkerError: The write was refused; nothing of it is stored.
    """

    def __init__(self, availability: StoreAvailability, committer: SessionCommitter, on_committed: OnCommitted) -> None:
        self._availability = availability
        self._committer = committer
        self._on_committed = on_committed
        self._queues: OrderedDict[str, _SessionQueue] = OrderedDict()
        self._closing = False

    def commit(self, session_id: str, commit: Commit) -> asyncio.Future[Sequence[EventRecord]]:
        """Queue a commit. The future is done when it is stored."""
        return self._put(session_id, commit, asyncio.get_running_loop().create_future())

    def receive(self, session_id: str, request: ReceiveRequest) -> asyncio.Future[StoredMessage]:
        """Queue a user message. The future is done when it is stored."""
        return self._put(session_id, request, asyncio.get_running_loop().create_future())

    def run_exclusively(
        self, session_id: str, operation: Callable[[], Awaitable[T]], *, changes_session: bool
    ) -> asyncio.Future[T]:
        """Queue an operation that runs alone, between the writes before and after it.

        Args:
            session_id: Session whose queue to use.
            operation: Function to call.
            changes_session: Whether the operation creates or deletes the session.
        """
        pending = _ExclusiveOperation(operation, changes_session)
        return self._put(session_id, pending, asyncio.get_running_loop().create_future())

    def refuse_pending(self, failure: StoreUnavailable) -> None:
        """Refuse every write that has not begun."""
        for queue in self._queues.values():
            while queue.pending:
                fail(queue.pending.popleft(), failure)

    async def close(self) -> None:
        """Write what is waiting, unless the store is unavailable. Later writes are refused."""
        self._closing = True
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        if tasks:
            with suppress(StoreUnavailable):
                await self._availability.wait_while_available(asyncio.wait(tasks))

    def _put(
        self, session_id: str, request: WriteRequest | _ExclusiveOperation, result: asyncio.Future[T]
    ) -> asyncio.Future[T]:
        if self._closing:
            raise StoreUnavailable("the store is closed")
        self._availability.require()  # at once: the writes before this one may wait for the server
        queue = self._queues.setdefault(session_id, _SessionQueue())
        queue.pending.append(PendingWrite(request, result))
        if queue.task is None:
            self._queues.move_to_end(session_id)
            queue.task = asyncio.create_task(self._drain(session_id, queue), name="mongo-writes")
        return result

    async def _drain(self, session_id: str, queue: _SessionQueue) -> None:
        try:
            while queue.pending:
                request = queue.pending[0].request
                if isinstance(request, _ExclusiveOperation):
                    await self._run_exclusively(queue, queue.pending.popleft(), request)
                else:
                    await self._write(session_id, queue)
        finally:
            queue.task = None
            self._drop_idle_queues()

    async def _run_exclusively(self, queue: _SessionQueue, pending: _Pending, operation: _ExclusiveOperation) -> None:
        if operation.changes_session:
            queue.known = None
        try:
            result = await operation.run()
        except Exception as failure:  # the root of the queue: the caller gets whatever went wrong
            fail(pending, failure)
        else:
            settle((pending,), (result,), (), self._on_committed)

    async def _write(self, session_id: str, queue: _SessionQueue) -> None:
        batch, requests = _take_batch(queue.pending)
        known, queue.known = queue.known, None  # until the batch is stored, nothing is known
        try:
            written = await self._committer.write(session_id, known, requests)
        except Exception as failure:  # the root of the queue, as above
            for pending in batch:
                fail(pending, failure)
            return
        queue.pending.extendleft(reversed(batch[len(written.outcomes) :]))
        committed = [(session_id, records) for records in written.committed]
        settle(batch, written.outcomes, committed, self._on_committed)
        queue.known = await self._committer.try_to_copy_tail(written.session)

    def _drop_idle_queues(self) -> None:
        excess = len(self._queues) - _MAX_QUEUES
        if excess > 0:
            idle = [session_id for session_id, queue in self._queues.items() if queue.task is None]
            for session_id in idle[:excess]:
                del self._queues[session_id]


def _take_batch(pending: deque[_Pending]) -> tuple[list[_Pending], list[WriteRequest]]:
    """Remove the next writes that can be stored together. Return them and their requests."""
    batch: list[_Pending] = []
    requests: list[WriteRequest] = []
    while pending and len(batch) < _MAX_BATCH:
        request = pending[0].request
        if isinstance(request, _ExclusiveOperation):
            break
        batch.append(pending.popleft())
        requests.append(request)
    return batch, requests
