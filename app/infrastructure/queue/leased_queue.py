"""The run queue of many processes that share a store. A lease decides which process carries a run.

    message stored ──▶ wake: lease the session here, or send a signal ──▶ a worker leases it ──▶ carries out the run
                                                                                 │
    every second, each worker looks for active sessions without a holder ────────┘

A worker carries a limited number of runs. The others wait in the store, without a lease, and each worker that has room
takes the next ones in the fair order of `LeaseRepository.list_claimable`.

A signal is only a hint. New messages and stop requests are also in the store, where the holder of a lease reads them
with every renewal. A lost signal costs one or two seconds; an unavailable broker costs nothing else.
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
from app.infrastructure.queue.leases import HeldLeases, LeaseTimes
from app.infrastructure.queue.supervisor import MAX_RUNS

log = logging.getLogger(__name__)

_MAX_LISTED = 256
"""Maximum number of waiting sessions that a worker lists at once, and therefore counts."""

_MAX_TAKEN_PER_SCAN = 16
"""Maximum number of sessions that a worker takes at once. It leaves the others to workers that look next."""

_RENEW_RETRY_SECONDS = 0.2
"""Seconds between two renewals while the store is unavailable.

Short, so that leases that expired meanwhile are renewed before other workers may take them.
"""

_MIN_SCAN_SECONDS = 0.05
"""Minimum seconds between two searches for waiting runs."""

_DELAY_PER_RUN_SECONDS = 0.001
"""Seconds, for each run that a worker has, by which it delays its reaction to a signal: the least busy is first."""


class LeasedRunQueue:
    """A `RunQueue` for any number of processes."""

    def __init__(
        self,
        worker: RunWorker,
        leases: LeaseRepository,
        signals: Signals,
        *,
        holder: str,
        takes_runs: bool,
        times: LeaseTimes | None = None,
        max_runs: int = MAX_RUNS,
    ) -> None:
        """Create the queue of one process. Call `start` before use.

        Args:
            worker: Carries out the runs.
            leases: The store of leases.
            signals: Carries requests to other processes.
            holder: A name for this process that no other process ever has.
            takes_runs: False for a process that requests runs but only carries them in order to stop them.
            times: The times of the leases.
            max_runs: Number of runs at once, see `RunSupervisor`.
        """
        self._worker = worker
        self._leases = leases
        self._signals = signals
        self._holder = holder
        self._takes_runs = takes_runs
        self._times = times or LeaseTimes()
        self._held = HeldLeases(
            worker,
            leases,
            signals,
            holder=holder,
            takes_runs=takes_runs,
            duration=self._times.duration,
            max_runs=max_runs,
        )
        self._scan_soon = self._held.has_freed_slot
        self._settled_events: set[tuple[str, asyncio.Event]] = set()
        self._background: list[asyncio.Task[None]] = []

    @property
    def active(self) -> int:
        """Implement `RunQueue.active`."""
        return self._held.active

    @property
    def waiting(self) -> int:
        """Implement `RunQueue.waiting`. Runs that wait in the store are counted up to `_MAX_LISTED`."""
        return self._held.waiting

    def start(self) -> None:
        """Start to renew leases, to listen to signals, and to look for runs without a holder."""
        self._signals.listen(self._on_signal)
        renewing = self._repeat(
            self._held.renew,
            self._times.renew_interval,
            "leases could not be renewed",
            interval_while_away=_RENEW_RETRY_SECONDS,
        )
        self._background.append(asyncio.create_task(renewing, name="lease renewal"))
        if self._takes_runs:
            scanning = self._repeat(
                self._take_waiting_runs,
                self._times.scan_interval,
                "runs without a holder could not be listed",
                hurry=self._scan_soon,
            )
            self._background.append(asyncio.create_task(scanning, name="run scan"))

    async def wake(self, session_id: str, *, up_to: int, owner: str) -> None:
        """Implement `RunQueue.wake`. Never fails: the message is stored, so a worker will find it."""
        if self._held.notify(session_id, last_user_message=up_to):
            return
        if self._held.may_start(owner):
            with suppress(NotFound, StoreUnavailable):
                if await self._held.try_start(session_id):
                    return
        self._scan_soon.set()
        self._signals.send(Signal(kind="wake", session_id=session_id, up_to=up_to))

    async def stop_run(self, session_id: str, *, up_to: int) -> None:
        """Implement `RunQueue.stop_run`."""
        try:
            while not await self._held.try_stop(session_id, up_to=up_to):
                if await self._request_stop_elsewhere(session_id, up_to):
                    return
        except NotFound:
            log.info("the session was deleted while its run was being stopped")

    async def cancel_run(self, session_id: str) -> None:
        """Implement `RunQueue.cancel_run`. The session stays leased for a while, so that nobody starts a run."""
        await self._held.cancel_run(session_id)
        # This name's leases are not renewed: if the deletion fails, the run can soon be taken.
        deleting = f"{self._holder}, deleting"
        try:
            other = await self._leases.take_over(session_id, holder=deleting, seconds=self._times.duration)
        except NotFound:
            return
        with self._settled_event(session_id) as settled:
            self._signals.send(Signal(kind="cancel", session_id=session_id))
            if other is not None and other not in (self._holder, deleting):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._times.settle_timeout):
                        await settled.wait()

    async def close(self) -> None:
        """Implement `RunQueue.close`. Another worker takes the runs of this process at once."""
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await self._held.close()

    async def _request_stop_elsewhere(self, session_id: str, up_to: int) -> bool:
        """Ask the holder of the lease to stop the run. Return whether it has done so. May be repeated."""
        with self._settled_event(session_id) as settled:
            await self._leases.request_stop(session_id, up_to=up_to)
            self._signals.send(Signal(kind="stop", session_id=session_id, up_to=up_to))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times.scan_interval / 4):
                    await settled.wait()
            return await self._leases.requested_stop(session_id) is None

    def _on_signal(self, signal: Signal) -> None:
        session_id = signal.session_id
        match signal.kind:
            case "wake":
                if not self._held.notify(session_id, last_user_message=signal.up_to):
                    self._held.start_task(self._start_soon(session_id))
            case "stop":
                self._held.notify(session_id, stop_up_to=signal.up_to)
            case "cancel":
                self._held.start_task(self._cancel_for_deletion(session_id))
            case "settled":
                for waiting_for, event in self._settled_events:
                    if waiting_for == session_id:
                        event.set()

    async def _start_soon(self, session_id: str) -> None:
        await asyncio.sleep(_DELAY_PER_RUN_SECONDS * self.active)
        if not self._held.may_start(None):
            self._scan_soon.set()
            return
        with suppress(NotFound, StoreUnavailable):
            await self._held.try_start(session_id)

    async def _cancel_for_deletion(self, session_id: str) -> None:
        """Cancel the run of a session that another process deletes."""
        if await self._held.cancel_run(session_id):
            self._signals.send(Signal(kind="settled", session_id=session_id))
        await self._worker.release(session_id)

    @contextmanager
    def _settled_event(self, session_id: str) -> Generator[asyncio.Event]:
        """Yield an event that is set by the signal `settled` of the session."""
        entry = (session_id, asyncio.Event())
        self._settled_events.add(entry)
        try:
            yield entry[1]
        finally:
            self._settled_events.remove(entry)

    async def _take_waiting_runs(self) -> None:
        """Take sessions that have work but no holder, in the order of their turns, as far as there is room."""
        claimable = await self._leases.list_claimable(limit=_MAX_LISTED)
        self._held.waiting = len(claimable)
        tried = 0
        for session_id, owner, is_stopping in claimable:
            if tried == _MAX_TAKEN_PER_SCAN:
                break
            if not (is_stopping or self._held.has_room(owner)):
                continue
            tried += 1
            with suppress(NotFound):
                if await self._held.try_start(session_id):
                    log.info("took a run without a holder", extra={"session_id": session_id})
        self._held.waiting = len(claimable) - tried

    async def _repeat(
        self,
        action: Callable[[], Awaitable[None]],
        interval: float,
        warning: str,
        *,
        interval_while_away: float = math.inf,
        hurry: asyncio.Event | None = None,
    ) -> None:
        """Call `action` for ever, about every `interval` seconds. The jitter keeps processes apart.

        While the store is unavailable, call it at least every `interval_while_away` seconds, and log `warning` once.
        Once `hurry` is set, call it soon.
        """
        hurry = hurry or asyncio.Event()
        away = False
        while True:
            try:
                await action()
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning(warning, extra={"error": str(error)})
                away = True
            except Exception:  # Root of the task: an unexpected error must not end it.
                log.exception(warning)
            pause = min(interval, interval_while_away) if away else interval
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.75, 1.0)):  # noqa: S311
                    await hurry.wait()
                    await asyncio.sleep(_MIN_SCAN_SECONDS)
            hurry.clear()
