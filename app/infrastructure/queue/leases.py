"""The leases of this process and the runs under them: acquire, renew, release, lose."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from app.domain.errors import LeaseLost, NotFound, StoreUnavailable
from app.domain.external.run_queue import RunWorker
from app.domain.external.signals import Signal, Signals
from app.domain.repositories.leases import Lease, LeaseRepository
from app.infrastructure.queue.supervisor import FAULT_PAUSE_SECONDS, MAX_RUNS, RunOutcome, RunSupervisor

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Times of the leases in seconds.

    After the death of its worker, a run continues within `duration + scan_interval`. A worker that cannot renew its
    leases for `duration` loses its runs, so several renewals must fit into that time.
    """

    duration: float = 6.0
    """How long a lease lasts unless it is renewed."""
    renew_interval: float = 1.5
    """Time between two renewals."""
    scan_interval: float = 1.0
    """Time between two searches for runs without a holder."""
    settle_timeout: float = 1.5
    """How long a deletion waits until another process has confirmed the end of the run."""


@dataclass(slots=True, eq=False)
class _HeldLease:
    """A lease of this process, and the newest requests to its run that this process knows of."""

    lease: Lease
    last_user_message: int
    stop_up_to: int = 0
    confirmation: "asyncio.Task[None] | None" = None
    """Confirms in the store that a stop was carried out. The lease is released after that."""


class HeldLeases:
    """The sessions that this process has leased."""

    def __init__(
        self,
        worker: RunWorker,
        leases: LeaseRepository,
        signals: Signals,
        *,
        holder: str,
        takes_runs: bool,
        duration: float,
        max_runs: int = MAX_RUNS,
    ) -> None:
        """Create an empty set of leases.

        Args:
            worker: Carries out the runs.
            leases: The store of leases.
            signals: Tells other processes about runs.
            holder: The name of this process in the store.
            takes_runs: False for a process that leases a session only to stop its run.
            duration: How long a lease lasts unless it is renewed, in seconds.
            max_runs: Number of runs at once, see `RunSupervisor`.
        """
        self._worker = worker
        self._leases = leases
        self._signals = signals
        self._holder = holder
        self._takes_runs = takes_runs
        self._duration = duration
        self._supervisor = RunSupervisor(worker, max_runs=max_runs, on_end=self._on_run_end)
        self.waiting = 0
        """Number of runs that no process carries, at the last look."""
        self.has_freed_slot = asyncio.Event()
        """Set when a run ends while others wait."""
        self._starting = 0
        """Number of leases being acquired for runs."""
        self._held: dict[str, _HeldLease] = {}
        self._unreleased: list[Lease] = []
        """Leases that could not be released because the store was unavailable."""
        self._unknown: set[tuple[str, int]] = set()
        """Session IDs and tokens of leases that, at the last renewal, this process had without knowing of them."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    @property
    def active(self) -> int:
        """Number of runs in this process that do not wait for a slot."""
        return self._supervisor.active

    def has_room(self, owner: str | None) -> bool:
        """Return whether this process may take another run of `owner`; None: of an owner that is not known."""
        slots = self._supervisor.slots
        return self._takes_runs and not self._closing and slots.has_room(owner, reserved=self._starting + slots.waiting)

    def may_start(self, owner: str | None) -> bool:
        """Return whether a run of `owner`, see `has_room`, may start before all that wait."""
        has_others = owner is None or self._supervisor.slots.held_by(owner) > 0
        return self.has_room(owner) and not (self.waiting and has_others)

    def notify(self, session_id: str, *, last_user_message: int = 0, stop_up_to: int | None = None) -> bool:
        """Pass new requests to the session's run; known ones have no effect. Return whether the lease is held here.

        A run that has just ended needs no request: releasing its lease shows whether there is more to do.

        Args:
            session_id: The session.
            last_user_message: Number of the newest stored user message that is known.
            stop_up_to: Number of the newest event when a user asked to stop; None if nobody did.
        """
        held = self._held.get(session_id)
        if held is None:
            return False
        if last_user_message > held.last_user_message:
            held.last_user_message = last_user_message
            self._supervisor.wake(session_id)
        if stop_up_to is not None and self._supervisor.has_run(session_id):
            self._handle_stop_request(held, stop_up_to)
        return True

    async def try_start(self, session_id: str) -> bool:
        """Lease the session and start its run. Return False if the session is leased. Completes if cancelled.

        Raises:
            NotFound: The session does not exist.
            StoreUnavailable: The session is not leased, as far as is known.
        """
        self._starting += 1
        task = self.start_task(self._acquire_and_start(session_id, None))
        task.add_done_callback(self._end_start)
        return await asyncio.shield(task) is not None

    async def try_stop(self, session_id: str, *, up_to: int) -> bool:
        """Stop the run if it is in this process or in none. Return False if it is in another process.

        Raises:
            NotFound: The session does not exist.
            StoreUnavailable: The run could not be stopped.
        """
        try:
            if self._supervisor.has_run(session_id):
                await self._supervisor.request_stop(session_id, up_to=up_to)
                return True
            stopped = await asyncio.shield(self.start_task(self._acquire_and_start(session_id, up_to)))
            if stopped is not None:
                await asyncio.shield(stopped)  # The confirmation awaits the same future.
            return stopped is not None
        except LeaseLost:
            return False

    async def cancel_run(self, session_id: str) -> bool:
        """Cancel the run and keep its lease in the store. Return whether the lease was held here."""
        if self._held.pop(session_id, None) is None:
            return False
        await self._supervisor.cancel(session_id)
        return True

    async def renew(self) -> None:
        """Renew all leases, and pass the requests that are found in the store to the runs.

        Raises:
            StoreUnavailable: No lease was renewed.
        """
        before = dict(self._held)
        if not (before or self._unreleased or self._unknown):
            return
        renewed = await self._leases.renew(holder=self._holder, seconds=self._duration)
        by_session = {lease.session_id: lease for lease in renewed}
        for session_id, held in before.items():
            if self._held.get(session_id) is not held:
                continue  # Released or acquired again during the renewal.
            lease = by_session.get(session_id)
            if lease is None or lease.token != held.lease.token:
                self._handle_loss(session_id)
            else:
                self.notify(session_id, last_user_message=lease.last_user_message, stop_up_to=lease.stop_up_to)
        await self._release_leftovers(renewed)

    async def close(self) -> None:
        """Cancel all runs and release all leases."""
        self._closing = True
        await self._supervisor.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def start_task(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task that `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _acquire_and_start(self, session_id: str, stop_up_to: int | None) -> "asyncio.Future[None] | None":
        """Lease the session and start its run, or stop it. Return None if the session is leased.

        The future is done once a stop is carried out, or at once if none is requested.
        """
        if session_id in self._held or self._supervisor.has_run(session_id):
            return None
        lease = await self._leases.acquire(session_id, holder=self._holder, seconds=self._duration)
        if lease is None:
            return None
        held = self._held[session_id] = _HeldLease(lease, last_user_message=lease.last_user_message)
        if self._closing:
            self._on_run_end(session_id, "done")
            return None
        requested = [number for number in (stop_up_to, lease.stop_up_to) if number is not None]
        if not requested:
            self._supervisor.start(
                session_id,
                owner=lease.owner,
                waited=lease.waited,
                fencing_token=lease.token,
                crashed=lease.previous_holder_lost,
            )
            return _completed()
        stopped = self._supervisor.request_stop(
            session_id,
            up_to=max(requested),
            owner=lease.owner,
            fencing_token=lease.token,
            crashed=lease.previous_holder_lost,
            only_stop=not self._takes_runs,
        )
        if lease.stop_up_to is not None:
            self._confirm_after(held, stopped, max(requested))
        return stopped

    def _end_start(self, _: asyncio.Task[Any]) -> None:
        self._starting -= 1

    def _on_run_end(self, session_id: str, outcome: RunOutcome) -> None:
        if self.waiting:
            self.has_freed_slot.set()
        held = self._held.pop(session_id, None)
        if outcome == "lost":
            self.start_task(self._worker.release(session_id))
        elif held is not None:
            self.start_task(self._release(held, pause=FAULT_PAUSE_SECONDS if outcome == "failed" else 0))

    async def _release(self, held: _HeldLease, *, pause: float) -> None:
        """Release the lease. If a user message has arrived by then, continue the run here or in another process."""
        if held.confirmation is not None:
            await asyncio.wait([held.confirmation])
        if pause and not self._closing:
            await asyncio.sleep(pause)
        session_id = held.lease.session_id
        try:
            if not await self._leases.release(held.lease):
                return
            if self.may_start(held.lease.owner) and await self._acquire_and_start(session_id, None) is not None:
                return
        except StoreUnavailable:
            self._unreleased.append(held.lease)
        except NotFound:
            return
        self._signals.send(Signal(kind="wake", session_id=session_id))

    def _handle_stop_request(self, held: _HeldLease, up_to: int) -> None:
        if up_to > held.stop_up_to:
            self._confirm_after(held, self._supervisor.request_stop(held.lease.session_id, up_to=up_to), up_to)
        elif held.confirmation is not None and held.confirmation.done():
            # A process that missed the confirmation has repeated its request. The run now carries later messages.
            self._confirm_after(held, _completed(), held.stop_up_to)

    def _handle_loss(self, session_id: str) -> None:
        log.warning("lease lost: another worker has the run", extra={"session_id": session_id})
        self._held.pop(session_id, None)
        self.start_task(self._supervisor.cancel(session_id, lost=True))

    def _confirm_after(self, held: _HeldLease, stopped: "asyncio.Future[None]", up_to: int) -> None:
        held.stop_up_to = up_to
        held.confirmation = self.start_task(self._confirm_stop(held, stopped, up_to))

    async def _confirm_stop(self, held: _HeldLease, stopped: "asyncio.Future[None]", up_to: int) -> None:
        """Clear the stop request in the store once it is carried out, and tell the process that asked."""
        session_id = held.lease.session_id
        try:
            await stopped
            await self._leases.clear_stop_request(session_id, up_to=up_to)
        except (StoreUnavailable, LeaseLost):
            held.stop_up_to = 0  # The request is still in the store; the next renewal returns it again.
            return
        self._signals.send(Signal(kind="settled", session_id=session_id, up_to=up_to))

    async def _release_leftovers(self, renewed: Iterable[Lease]) -> None:
        """Release leases whose release failed, and those whose acquisition succeeded without a response.

        The latter must be seen in two renewals, because an acquisition may be in progress during the first.
        """
        found = {(lease.session_id, lease.token): lease for lease in renewed if lease.session_id not in self._held}
        confirmed = [lease for key, lease in found.items() if key in self._unknown]
        self._unknown = set(found)
        unreleased, self._unreleased = self._unreleased, []
        for lease in {lease.session_id: lease for lease in (*unreleased, *confirmed)}.values():
            await self._release(_HeldLease(lease, last_user_message=lease.last_user_message), pause=0)


def _completed() -> "asyncio.Future[None]":
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future
