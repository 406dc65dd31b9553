"""The run queue of many processes over one store: who carries on a run is decided by a lease, and by nothing else.

    message stored ──▶ wake: take the lease here, or tell the workers ──▶ one of them takes it ──▶ drives the run
                                  (a signal is a hint)                        │
    every second each worker looks for active sessions without a holder ──────┘

What a signal says also stands in the store (new words, a stop that was asked for), and whoever holds a lease reads it
there whenever the lease is renewed. So a lost signal costs a second or two, and a lost broker nothing else.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress

from app.domain.errors import NotFound, StoreUnavailable
from app.domain.external.run_queue import RunWorker
from app.domain.external.signals import Signal, Signals
from app.domain.repositories.leases import LeaseRepository
from app.infrastructure.queue.holdings import Holdings, LeaseTimes

log = logging.getLogger(__name__)

_AT_A_LOOK = 16
"""Sessions that a worker takes at one look: the others are left to the workers that look next."""

_AWAY_SECONDS = 0.2
"""Between two tries to renew while the store is away: leases that ran out meanwhile are renewed before others may take
them."""

_BUSY_SECONDS = 0.001
"""How much longer a worker hesitates at a signal for every run that it has: the least busy comes first."""


class LeasedRunQueue:
    """A `RunQueue` for any number of processes. `takes_runs=False`: a process that only asks, and carries no run
    beyond the moment that it takes to end one."""

    def __init__(
        self,
        worker: RunWorker,
        leases: LeaseRepository,
        signals: Signals,
        *,
        holder: str,
        takes_runs: bool,
        times: LeaseTimes | None = None,
    ) -> None:
        """`holder`: this process's name, no other's, never used again."""
        self._worker = worker
        self._leases = leases
        self._signals = signals
        self._holder = holder
        self._takes_runs = takes_runs
        self._times = times or LeaseTimes()
        self._holdings = Holdings(
            worker, leases, signals, holder=holder, takes_runs=takes_runs, seconds=self._times.lease
        )
        self._settled: dict[str, list[asyncio.Event]] = {}
        self._rounds: list[asyncio.Task[None]] = []

    @property
    def active(self) -> int:
        """See `RunQueue.active`."""
        return self._holdings.active

    def start(self) -> None:
        """Begin to renew, to listen, and to look for work."""
        self._signals.listen(self._on_signal)
        keep = self._again(
            self._holdings.renew, self._times.renew, "leases could not be renewed", while_away=_AWAY_SECONDS
        )
        self._rounds.append(asyncio.create_task(keep, name="lease keeper"))
        if self._takes_runs:
            look = self._again(self._take_some, self._times.look, "no look at the runs that wait")
            self._rounds.append(asyncio.create_task(look, name="run finder"))

    async def wake(self, session_id: str, *, up_to: int) -> None:
        """See `RunQueue.wake`. Never fails: the words are stored, so that a worker finds them in any case."""
        if self._holdings.hear(session_id, words=up_to):
            return
        if self._holdings.has_room:
            with suppress(NotFound, StoreUnavailable):
                if await self._holdings.take(session_id) is not None:
                    return
        self._signals.send(Signal(kind="wake", session_id=session_id, up_to=up_to))

    async def stop(self, session_id: str, *, up_to: int) -> None:
        """See `RunQueue.stop`."""
        try:
            while not await self._holdings.stop(session_id, up_to=up_to):
                if await self._stop_elsewhere(session_id, up_to):
                    return
        except NotFound:
            log.info("the session was deleted while it was being stopped")

    async def cancel(self, session_id: str) -> None:
        """See `RunQueue.cancel`. The session stays leased for a while, so that nobody begins it anew."""
        await self._holdings.drop(session_id)
        # Not under the name whose leases are renewed: should the deletion fail, the run is free again soon.
        deleting = f"{self._holder}, deleting"
        try:
            other = await self._leases.take_over(session_id, holder=deleting, seconds=self._times.lease)
        except NotFound:
            return
        with self._listening(session_id) as settled:
            self._signals.send(Signal(kind="cancel", session_id=session_id))
            if other is not None and other not in (self._holder, deleting):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._times.settle):
                        await settled.wait()

    async def close(self) -> None:
        """See `RunQueue.close`. What was under way here is taken by another worker at once."""
        for task in self._rounds:
            task.cancel()
        if self._rounds:
            await asyncio.wait(self._rounds)
        await self._holdings.close()

    async def _stop_elsewhere(self, session_id: str, up_to: int) -> bool:
        """Ask whoever has the run to end it; False: not yet done. Asking again does no harm."""
        with self._listening(session_id) as settled:
            await self._leases.request_stop(session_id, up_to=up_to)
            self._signals.send(Signal(kind="stop", session_id=session_id, up_to=up_to))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times.look / 4):
                    await settled.wait()
            return await self._leases.requested_stop(session_id) is None

    def _on_signal(self, signal: Signal) -> None:
        session_id = signal.session_id
        match signal.kind:
            case "wake":
                if not self._holdings.hear(session_id, words=signal.up_to) and self._holdings.has_room:
                    self._holdings.spawn(self._take_soon(session_id))
            case "stop":
                self._holdings.hear(session_id, stop_up_to=signal.up_to)
            case "cancel":
                self._holdings.spawn(self._cancelled(session_id))
            case "settled":
                for event in self._settled.get(session_id, ()):
                    event.set()

    async def _take_soon(self, session_id: str) -> None:
        await asyncio.sleep(_BUSY_SECONDS * self.active)
        with suppress(NotFound, StoreUnavailable):
            await self._holdings.take(session_id)

    async def _cancelled(self, session_id: str) -> None:
        """The session is being deleted by another process."""
        if await self._holdings.drop(session_id):
            self._signals.send(Signal(kind="settled", session_id=session_id))
        await self._worker.forget(session_id)

    @contextmanager
    def _listening(self, session_id: str) -> Generator[asyncio.Event]:
        """An event that is set when somebody says that the session is settled."""
        event = asyncio.Event()
        waiting = self._settled.setdefault(session_id, [])
        waiting.append(event)
        try:
            yield event
        finally:
            waiting.remove(event)
            if not waiting and self._settled.get(session_id) is waiting:
                del self._settled[session_id]

    async def _take_some(self) -> None:
        """Take sessions that nobody carries on."""
        if not self._holdings.has_room:
            return
        waiting = list(await self._leases.list_claimable(limit=_AT_A_LOOK))
        random.shuffle(waiting)
        for session_id in waiting:
            with suppress(NotFound):
                if self._holdings.has_room and await self._holdings.take(session_id) is not None:
                    log.info("a run that nobody carried on goes on here", extra={"session_id": session_id})

    async def _again(
        self, round_: Callable[[], Awaitable[None]], seconds: float, trouble: str, *, while_away: float = math.inf
    ) -> None:
        """Do it now and every `seconds` or a little less: not all processes at the same instant. As long as the store
        is away it is tried at least every `while_away` seconds."""
        away = False
        while True:
            try:
                await round_()
                away = False
            except StoreUnavailable as error:
                if not away:  # not in every round until it is back
                    log.warning(trouble, extra={"error": str(error)})
                away = True
            except Exception:  # the root of a round: a fault in one must not end those that follow
                log.exception(trouble)
            pause = min(seconds, while_away) if away else seconds
            await asyncio.sleep(pause * random.uniform(0.75, 1.0))  # noqa: S311
