"""Group commit: all writes that wait go into one transaction, and so to the disk at once."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.session_update import EncodeEvent
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.transaction import CursorCache, Transaction
from app.infrastructure.persistence.write_requests import (
    CommittedEvents,
    OnCommitted,
    Outcome,
    PendingWrite,
    attempt,
    fail,
    settle,
)

T = TypeVar("T")

_MAX_BATCH = 256
"""Maximum number of writes in one transaction, so that the first of them does not wait long."""

Work = Callable[[Transaction], T]
"""One write, called on the writing thread."""


class Writer:
    """The one task that writes. The store calls `start` and `close`."""

    def __init__(self, database: Database, encode: EncodeEvent, on_committed: OnCommitted) -> None:
        self._database = database
        self._encode = encode
        self._on_committed = on_committed
        self._cache = CursorCache()
        self._pending: deque[PendingWrite[Work[object]]] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.last_failure: str | None = None
        """Why the last transaction failed; None if it succeeded."""

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="sqlite-writer")

    async def close(self) -> None:
        """Write what is waiting, then end. Later writes are refused."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def write(self, work: Work[T]) -> T:
        """Run `work` in the next transaction, and return its result once that is on the disk.

        Cancelling a caller that waits does not undo the write.

        Raises:
            StoreUnavailable: Nothing was written.
            AnkerError: `work` raised it; nothing of this write was written.
        """
        if self._closing or self._task is None or self._task.done():
            raise StoreUnavailable("the store is closed")
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append(PendingWrite(work, result))
        self._wake.set()
        return await result

    async def _run(self) -> None:
        while self._pending or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                await self._flush([self._pending.popleft() for _ in range(min(_MAX_BATCH, len(self._pending)))])

    async def _flush(self, batch: list[PendingWrite[Work[object]]]) -> None:
        works = [pending.request for pending in batch]
        try:
            outcomes, committed = await self._database.run(lambda connection: self._transact(connection, works))
        except Exception as failure:  # the root of the writer: the callers get whatever went wrong
            self.last_failure = str(failure) or type(failure).__name__
            for pending in batch:
                fail(pending, failure)
            return
        self.last_failure = None
        settle(batch, outcomes, committed, self._on_committed)

    def _transact(
        self, connection: sqlite3.Connection, works: list[Work[object]]
    ) -> tuple[list[Outcome], list[CommittedEvents]]:
        """Run all of `works` in one transaction, on the writing thread."""
        transaction = Transaction(connection, self._cache, self._encode)
        try:
            transaction.begin()
            outcomes = [attempt(lambda w=work: w(transaction)) for work in works]
            transaction.end()
        except BaseException:
            transaction.roll_back()
            raise
        return outcomes, transaction.committed
