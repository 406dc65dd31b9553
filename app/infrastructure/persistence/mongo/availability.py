"""Availability of MongoDB: while it is away, every call is refused at once. When it is back, the store works again."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import pymongo

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo import client
from app.infrastructure.persistence.mongo.client import Document, MongoDatabase, StoreFailure

T = TypeVar("T")

_CHECK_INTERVAL_SECONDS = 0.5
"""Seconds between two checks while the store is available."""

_RECOVERY_INTERVAL_SECONDS = 0.1
"""Seconds between two checks while the store is unavailable."""

_CHECK_SECONDS = 0.7
"""Maximum seconds for one check."""

_MAX_SLOW_CHECKS = 2
"""Number of slow checks in a row, without any successful operation, after which the server counts as hanging."""

_MAX_LAG_SECONDS = 2.0
"""Maximum seconds that a write of the primary may take to reach a majority."""

_RETRY_AFTER = 2
"""Seconds after which callers should retry."""

_CLOSED = "the store is closed"
_BROKEN = "the connection broke"

NO_MAJORITY = StoreFailure("no majority of the servers answers", is_lost=True)
NEW_PRIMARY = StoreFailure("the new primary is not yet followed by a majority", is_lost=True)


def store_unavailable(reason: str) -> StoreUnavailable:
    """Return the error of a store that cannot be used because of `reason`."""
    return StoreUnavailable(f"the store does not work now: {reason}", retry_after=_RETRY_AFTER)


class StoreAvailability:
    """Runs operations while the server answers. The store calls `start` and `close`.

    The store becomes unavailable as soon as an operation or a periodic check finds no server. From then on it refuses
    every call at once and gives up the reads in flight. It becomes available when a check succeeds.
    """

    def __init__(self, database: MongoDatabase, *, on_unavailable: Callable[[StoreUnavailable], None]) -> None:
        self._database = database
        self._on_unavailable = on_unavailable
        self._lost: asyncio.Future[None]
        """Done as soon as the store is unavailable; a new future each time that it is available again."""
        self._check_now = asyncio.Event()
        self._last_success = 0.0
        self._majority = MajorityMonitor()
        self._task: asyncio.Task[None] | None = None
        self.reason: str | None = _CLOSED
        """Why the store is unavailable; None while it is available."""
        self.recovered_at = -math.inf
        """Monotonic time in seconds at which the server was last back after it had been away."""

    def start(self) -> None:
        """Become available, and start the periodic check."""
        self._become_available()
        self._task = asyncio.create_task(self._watch(), name="mongo-availability")

    async def close(self) -> None:
        """Refuse every further call, and stop the periodic check."""
        self.reason = _CLOSED
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
            if not self._lost.done():
                self._lost.set_result(None)

    def mark_lost(self) -> None:
        """Become unavailable, because the client has lost sight of every writable server."""
        self._become_unavailable(client.NO_SERVER)

    def require(self) -> None:
        """Do nothing while the store is available.

        Raises:
            StoreUnavailable: The store is unavailable or closed.
        """
        if self.reason is not None:
            raise StoreUnavailable(self.reason, retry_after=_RETRY_AFTER)

    async def write(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation to its end, even if the caller is cancelled, and return its result.

        Raises:
            StoreUnavailable: The operation failed, or the store is unavailable.
        """
        self.require()
        task = _start(operation())
        await asyncio.wait((task,))
        return self._result(task)

    async def read(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Return the result of an operation. Abandon it when the store becomes unavailable or the caller is cancelled.

        Raises:
            StoreUnavailable: The operation failed, or the store is or became unavailable.
        """
        self.require()
        task = _start(operation())
        try:
            # Nobody waits for the cancelled task: the client may react to the cancellation late or never.
            await asyncio.wait((task, self._lost), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise store_unavailable(_BROKEN)
            return self._result(task)
        finally:
            task.cancel()

    async def wait_while_available(self, work: Awaitable[T]) -> T:
        """Return the result of `work`, which runs to its end in any case; stop waiting if the store gets unavailable.

        For callers that must not wait and do not depend on the outcome: they do not learn whether `work` succeeded.

        Raises:
            StoreUnavailable: The store is or became unavailable.
        """
        task = _start(work)
        await asyncio.wait((task, self._lost), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            self.require()
            raise store_unavailable(_BROKEN)  # the store is available again already
        return task.result()

    def _result(self, task: "asyncio.Future[T]") -> T:
        try:
            result = task.result()
        except client.CLIENT_ERRORS as error:
            failure = self._database.explain(error)
            if failure.is_lost:
                self._become_unavailable(failure)
            raise store_unavailable(failure.reason) from error
        self._last_success = time.monotonic()
        return result

    def _become_available(self) -> None:
        self.reason = None
        self._lost = asyncio.get_running_loop().create_future()

    def _become_unavailable(self, failure: StoreFailure) -> None:
        error = store_unavailable(failure.reason)
        if self.reason is not None:
            if failure.is_lost and failure != client.NO_SERVER:  # a server is back, but still refuses to work
                self.reason = str(error)
            return
        self.reason = str(error)
        self._check_now.set()
        self._lost.set_result(None)
        self._on_unavailable(error)

    async def _watch(self) -> None:
        slow_checks = 0
        while True:
            if slow_checks == 0:
                await self._pause()
            started = time.monotonic()
            failure = await self._check()
            if failure is None:
                slow_checks = 0
                if self.reason is not None:
                    self.recovered_at = time.monotonic()
                    self._become_available()
                continue
            # A machine under load may make a check slow although the server works, which other operations prove.
            slow_checks = slow_checks + 1 if self._last_success < started else 0
            if failure.is_lost or slow_checks == _MAX_SLOW_CHECKS:
                slow_checks = 0
                self._become_unavailable(failure)
                self._check_now.clear()

    async def _pause(self) -> None:
        """Wait until the next check is due."""
        seconds = _CHECK_INTERVAL_SECONDS if self.reason is None else _RECOVERY_INTERVAL_SECONDS
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._check_now.wait()
        self._check_now.clear()

    async def _check(self) -> StoreFailure | None:
        """Ask the server whether it can be used."""
        with pymongo.timeout(_CHECK_SECONDS):
            task = _start(self._database.hello())
        # The time limit of the client does not hold while it waits for a thread.
        await asyncio.wait((task,), timeout=_CHECK_SECONDS + 0.1)
        if not task.done():
            task.cancel()
            return client.TIMED_OUT
        error = task.exception()
        if isinstance(error, client.CLIENT_ERRORS):
            return self._database.explain(error)
        return self._majority.check(task.result(), now=time.monotonic())


_LogPosition = tuple[int, int, int]
"""Position in the log that all servers of a replica set share: term of the primary, second, and step within it."""


class MajorityMonitor:
    """Judges from successive replies of a primary whether a majority follows it, without writing anything.

    A primary that lost the others continues to answer for ten seconds, but its writes may be undone. A new primary
    that a majority does not follow yet may return older data than the primary before it returned.
    """

    def __init__(self) -> None:
        self._unconfirmed: tuple[_LogPosition, float] | None = None
        """A position that a majority has not reached, and the monotonic time at which it was first seen."""

    def check(self, hello: Document, *, now: float) -> StoreFailure | None:
        """Return why the server cannot be used, None if it can. `now` is the monotonic time of its reply `hello`."""
        if hello.get("isWritablePrimary") is False:
            return client.NO_SERVER
        last_write = hello.get("lastWrite", {})
        if "majorityOpTime" not in last_write:
            return None  # a router, which checks its servers itself
        newest, confirmed = _position(last_write["opTime"]), _position(last_write["majorityOpTime"])
        if confirmed[0] < newest[0]:
            return NEW_PRIMARY
        if self._unconfirmed is None or self._unconfirmed[0] <= confirmed:
            self._unconfirmed = None if newest <= confirmed else (newest, now)
        elif now - self._unconfirmed[1] >= _MAX_LAG_SECONDS:
            return NO_MAJORITY
        return None


def _position(optime: Document) -> _LogPosition:
    return int(optime["t"]), optime["ts"].time, optime["ts"].inc


def _start(work: Awaitable[T]) -> "asyncio.Future[T]":
    """Start `work` as a task whose exception may stay unread."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_read_exception)
    return task


def _read_exception(task: "asyncio.Future[T]") -> None:
    if not task.cancelled():
        task.exception()
