"""Group commit: everything that is waiting to be written goes into one transaction, and so to the disk at once."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.domain.errors import AnkerError, StoreUnavailable
from app.domain.models.event import EventRecord
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.ledger import Ledger

T = TypeVar("T")

OnCommitted = Callable[[str, Sequence[EventRecord]], None]
"""Called on the event loop with a session's id and its newly stored events, in the order of their numbers."""

_BATCH = 256
"""Writes in one transaction at most, so that the first of them need not wait for ever more."""


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What one write answers its caller, and the events that it stored."""

    answer: T
    session_id: str = ""
    records: Sequence[EventRecord] = ()


Work = Callable[[Ledger, sqlite3.Connection], Written[T]]
"""One write: runs inside the transaction, on the writing thread."""


@dataclass(slots=True)
class _Pending:
    work: "Work[object]"
    done: "asyncio.Future[object]"


_Outcome = Written[object] | AnkerError | TypeError | ValueError | RecursionError


class Writer:
    """The one task that writes. `start` and `close` belong to whoever made it."""

    def __init__(self, database: Database, ledger: Ledger, on_committed: OnCommitted) -> None:
        self._database = database
        self._ledger = ledger
        self._on_committed = on_committed
        self._pending: deque[_Pending] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.trouble: str | None = None
        """Why the last transaction failed; None when it did not."""

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="sqlite-writer")

    async def close(self) -> None:
        """Write what is waiting, then end; later writes are refused."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def write(self, work: Work[T]) -> T:
        """Put `work` into the next transaction, and wait until that is on the disk.

        A caller that is cancelled while waiting does not undo the write.

        Raises:
            StoreUnavailable: nothing was written.
            AnkerError: what `work` raised; nothing of it was written.
        """
        if self._closing or self._task is None or self._task.done():
            raise StoreUnavailable("the store is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(work, done))  # type: ignore[arg-type]
        self._wake.set()
        return await done

    async def _run(self) -> None:
        while self._pending or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._flush([self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))])

    async def _flush(self, batch: list[_Pending]) -> None:
        works = [pending.work for pending in batch]
        try:
            outcomes = await self._database.run(lambda connection: self._transact(connection, works))
        except Exception as failure:  # the writer's root: whatever went wrong belongs to those who wait
            self.trouble = str(failure) or type(failure).__name__
            for pending in batch:
                _fail(pending.done, failure)
            return
        self.trouble = None
        loop = asyncio.get_running_loop()
        for outcome in outcomes:
            if isinstance(outcome, Written) and outcome.records:
                # Runs before any waiter, since those are scheduled below; a fault in there cannot hurt us.
                loop.call_soon(self._on_committed, outcome.session_id, outcome.records)
        for pending, outcome in zip(batch, outcomes, strict=True):
            if not isinstance(outcome, Written):
                _fail(pending.done, outcome)
            elif not pending.done.done():
                pending.done.set_result(outcome.answer)

    def _transact(self, connection: sqlite3.Connection, works: "list[Work[object]]") -> list[_Outcome]:
        """All of `works` in one transaction. On the writing thread."""
        committed = False
        try:
            self._ledger.begin(connection)
            outcomes = [self._attempt(connection, work) for work in works]
            self._ledger.end(connection)
            committed = True
            return outcomes
        finally:
            if not committed:
                self._ledger.undo(connection)

    def _attempt(self, connection: sqlite3.Connection, work: "Work[object]") -> _Outcome:
        try:
            return work(self._ledger, connection)
        except (AnkerError, TypeError, ValueError, RecursionError) as refused:
            # Its own fault and before it wrote anything: the others go on.
            return refused


def _fail(done: "asyncio.Future[object]", failure: BaseException) -> None:
    if done.done():
        return
    if isinstance(failure, StoreUnavailable):
        # One exception raised in many tasks would collect all their tracebacks.
        failure = type(failure)(str(failure), retry_after=failure.retry_after)
    done.set_exception(failure)
