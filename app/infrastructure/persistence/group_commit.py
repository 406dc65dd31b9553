"""Group commit, alike in both stores: requests that wait are written together, and each caller gets its own result."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.domain.errors import AnkerError, NotFound, StoreUnavailable
from app.domain.models.event import EventRecord

R = TypeVar("R")

OnCommitted = Callable[[str, Sequence[EventRecord]], None]
"""Callback on the event loop for a session's newly stored events, called in the order of their numbers."""

CommittedEvents = tuple[str, Sequence[EventRecord]]
"""Id of a session, and events of one write to it."""

Outcome = object
"""Result of a request, or the exception that refused it."""


@dataclass(frozen=True, slots=True)
class WrittenBatch:
    """Result of writing a batch."""

    outcomes: Sequence[Outcome]
    """Outcome of each request. The requests after the last outcome stay in the queue."""
    committed: Sequence[CommittedEvents]
    """Events that the batch stored, in order."""


class GroupCommitQueue(ABC, Generic[R]):
    """Requests in order, and the task that writes them while there are any.

    A failed batch fails for all of its callers. Cancelling a caller that waits does not undo its request.
    """

    def __init__(self, max_batch: int, on_committed: OnCommitted) -> None:
        self._max_batch = max_batch
        self._on_committed = on_committed
        self._pending: deque[tuple[R, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return self._task is None

    def put(self, request: R) -> asyncio.Future[Any]:
        """Add a request. The future is done when the request is stored or has failed."""
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append((request, result))
        if self._task is None:
            self._task = asyncio.create_task(self._drain(), name="store-writer")
        return result

    def refuse_pending(self, failure: StoreUnavailable) -> None:
        """Refuse every request that is not being written."""
        while self._pending:
            _fail(self._pending.popleft()[1], failure)

    async def wait_until_idle(self) -> None:
        """Wait until everything is written."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    @abstractmethod
    async def _write(self, requests: Sequence[R]) -> WrittenBatch:
        """Write `requests`, or as many of the first ones as fit."""

    async def _after_write(self) -> None:
        """Do what need not delay the callers."""

    def _runs_alone(self, request: R) -> bool:
        """Return whether the request must not share a batch."""
        return False

    async def _drain(self) -> None:
        try:
            while self._pending:
                await self._write_next(self._take_batch())
        finally:
            self._task = None

    def _take_batch(self) -> list[tuple[R, asyncio.Future[Any]]]:
        batch = [self._pending.popleft()]
        while self._pending and len(batch) < self._max_batch:
            if self._runs_alone(batch[0][0]) or self._runs_alone(self._pending[0][0]):
                break
            batch.append(self._pending.popleft())
        return batch

    async def _write_next(self, batch: list[tuple[R, asyncio.Future[Any]]]) -> None:
        try:
            written = await self._write([request for request, _ in batch])
        except Exception as failure:  # the root of the queue: the callers get whatever went wrong
            for _, result in batch:
                _fail(result, failure)
            return
        self._pending.extendleft(reversed(batch[len(written.outcomes) :]))
        loop = asyncio.get_running_loop()
        for session_id, records in written.committed:
            # The loop calls it before it wakes the callers below. An exception in it reaches only the loop's handler.
            loop.call_soon(self._on_committed, session_id, records)
        for (_, result), outcome in zip(batch, written.outcomes, strict=False):
            if isinstance(outcome, Exception):
                _fail(result, outcome)
            elif not result.done():
                result.set_result(outcome)
        await self._after_write()


def attempt(work: Callable[[], object]) -> Outcome:
    """Return the result of `work`, or the exception that belongs to its own request.

    Such a request is refused before it changes anything, so the requests around it are still written.
    """
    try:
        return work()
    except (AnkerError, TypeError, ValueError, RecursionError) as refusal:
        return refusal


def _fail(result: asyncio.Future[Any], failure: Exception) -> None:
    """Raise `failure` in the caller, as an exception of its own: a shared one would collect all their tracebacks."""
    if result.done():
        return
    if isinstance(failure, StoreUnavailable):
        failure = type(failure)(str(failure), retry_after=failure.retry_after)
    elif type(failure) is NotFound:
        failure = NotFound(str(failure))
    result.set_exception(failure)
