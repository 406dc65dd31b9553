"""The gate before MongoDB: while it is away nobody waits for it, and when it is back everything goes on by itself."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from app.domain.errors import StoreUnavailable
from app.infrastructure.persistence.mongo.driver import NOBODY, Driver, Failure
from app.infrastructure.persistence.mongo.majority import Majority

T = TypeVar("T")

_PAUSE_SECONDS = 0.5
"""Between two looks at the server."""

_PAUSE_AWAY_SECONDS = 0.1
"""The same while the gate is closed: everybody waits for it to open."""

_LOOK_SECONDS = 0.7
"""How long one look may take."""

_MISSES = 2
"""Looks in a row that took longer while nothing else succeeded: the server hangs."""

_RETRY_AFTER = 2
_BROKE = "the connection broke"


def unavailable(words: str) -> StoreUnavailable:
    """The error of a store that does not work because of `words`."""
    return StoreUnavailable(f"the store does not work now: {words}", retry_after=_RETRY_AFTER)


class Gate:
    """Lets operations through while the server answers. `start` and `close` belong to the store.

    It closes as soon as an operation, or a look of its own, finds no server; from then on every call is refused at
    once, those that were only reading included. It opens when a look succeeds.
    """

    def __init__(self, driver: Driver, *, on_closed: Callable[[StoreUnavailable], None]) -> None:
        self._driver = driver
        self._on_closed = on_closed
        self._closed: asyncio.Future[None]
        """Done as soon as the gate is closed."""
        self._look = asyncio.Event()
        self._succeeded = 0.0
        self._majority = Majority()
        self._task: asyncio.Task[None] | None = None
        self.reason: str | None = "the store is closed"
        """Why nothing gets through; None while it does."""
        self.returned = -math.inf
        """When the server was back after it had been away, on the monotonic clock."""

    def start(self) -> None:
        """Open the gate, and begin to look."""
        self._open()
        self._task = asyncio.create_task(self._watch(), name="mongo-gate")

    async def close(self) -> None:
        """Let nothing through any more."""
        self.reason = "the store is closed"
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
            if not self._closed.done():
                self._closed.set_result(None)

    def lost(self) -> None:
        """The client has lost sight of every server: nobody is to wait until it sees one again."""
        self._shut(NOBODY)

    def check(self) -> None:
        """Pass, or raise.

        Raises:
            StoreUnavailable: the server is away, or the store closed.
        """
        if self.reason is not None:
            raise StoreUnavailable(self.reason, retry_after=_RETRY_AFTER)

    async def write(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry out an operation to its end, also when the caller is cancelled.

        Raises:
            StoreUnavailable: it failed, or the gate is closed.
        """
        self.check()
        task = _begun(operation)
        await asyncio.wait((task,))
        return self._answer(task)

    async def read(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry out an operation that may as well not happen; it is given up when the gate closes.

        Raises:
            StoreUnavailable: it failed, or the gate is or was closed.
        """
        self.check()
        task = _begun(operation)
        try:
            # The client's word that it is cancelled is not waited for: it may take its time, or never hear of it.
            await asyncio.wait((task, self._closed), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise unavailable(_BROKE)
            return self._answer(task)
        finally:
            task.cancel()

    async def unless_closed(self, work: Awaitable[T]) -> T:
        """The answer of `work`, which goes on to its end whatever happens, or a refusal as soon as the gate closes.

        For who must not wait, and does not go on from what is stored: whether it was done is not known then.

        Raises:
            StoreUnavailable: the gate is or was closed.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(_heard)
        await asyncio.wait((task, self._closed), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            self.check()
            raise unavailable(_BROKE)  # and it is open again already
        return task.result()

    def _answer(self, task: "asyncio.Future[T]") -> T:
        try:
            answer = task.result()
        except self._driver.failures as error:
            raise self.refused(error) from error
        self._succeeded = time.monotonic()
        return answer

    def refused(self, error: Exception) -> StoreUnavailable:
        """The client's `error` as ours; closes the gate when no server is there."""
        failure = self._driver.failure(error)
        if failure.lost:
            self._shut(failure)
        return unavailable(failure.words)

    def _shut(self, failure: Failure) -> None:
        trouble = unavailable(failure.words)
        if self.reason is not None:
            if failure.lost and failure != NOBODY:  # somebody is back, and has something against us
                self.reason = str(trouble)
            return
        self.reason = str(trouble)
        self._look.set()
        self._closed.set_result(None)
        self._on_closed(trouble)

    async def _watch(self) -> None:
        missed = 0
        while True:
            if missed == 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PAUSE_SECONDS if self.reason is None else _PAUSE_AWAY_SECONDS):
                        await self._look.wait()
                self._look.clear()
            began = time.monotonic()
            failure = await self._ask()
            if failure is None:
                missed = 0
                if self.reason is not None:
                    self.returned = time.monotonic()
                    self._open()
                continue
            # A machine under load may miss a look although the server works: what succeeded meanwhile speaks for it.
            missed = missed + 1 if self._succeeded < began else 0
            if failure.lost or missed == _MISSES:
                missed = 0
                self._shut(failure)
                self._look.clear()

    def _open(self) -> None:
        self.reason = None
        self._closed = asyncio.get_running_loop().create_future()

    async def _ask(self) -> Failure | None:
        with self._driver.within(_LOOK_SECONDS):
            task = _begun(lambda: self._driver.command("hello"))
        # The client's own bound does not hold while it waits for a thread.
        await asyncio.wait((task,), timeout=_LOOK_SECONDS + 0.1)
        if not task.done():
            task.cancel()
            return Failure("it does not answer in time")
        error = task.exception()
        if isinstance(error, self._driver.failures):
            return self._driver.failure(error)
        return self._majority.trouble(task.result(), now=time.monotonic())


def _begun(operation: Callable[[], Awaitable[T]]) -> "asyncio.Future[T]":
    """The operation under way; nobody has to ask what became of it."""
    task = asyncio.ensure_future(operation())
    task.add_done_callback(_heard)
    return task


def _heard(task: "asyncio.Future[T]") -> None:
    if not task.cancelled():
        task.exception()
