"""The supervisor of the runs in this process: one task for each run makes attempts and handles requests.

A run waits for a slot before its first attempt, and keeps it until it ends. `InlineRunQueue` is the run queue of a
process that owns its store: all runs are in this process.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Literal

from app.domain.errors import AnkerError, LeaseLost, NotFound, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt, RunWorker
from app.domain.services.flows.plan_act import CRASHED, INTERRUPTED, STOPPED, STORE_AWAY
from app.infrastructure.fair_slots import FairSlots

log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.2, 0.5, 1, 2)
"""Pauses in seconds between attempts while the store is unavailable. The last one repeats."""

MAX_RUNS = 100
"""Default number of runs that a process carries at once."""

FAULT_PAUSE_SECONDS = 2.0
"""Pause in seconds after an attempt that failed with an unexpected error."""

_NOT_STOPPED = "the run could not be stopped"

RunOutcome = Literal["done", "lost", "failed"]
"""How the task of a run ended: nothing is left to do, another worker has the run, or an unexpected error."""


@dataclass(slots=True, eq=False)
class _SupervisedRun:
    """A run of this process and the requests that have arrived since its current attempt started."""

    owner: str
    since: float
    """Time of the event loop's clock since which the run waits for a slot."""
    fencing_token: int | None
    crashed: bool
    """Whether the process that carried the run before has died, and no attempt has counted the crash yet."""
    woken: bool
    """Whether there may be something to do in another attempt."""
    only_stop: bool
    """Whether to end after a stop, even if newer user messages are stored."""
    task: "asyncio.Task[None] | None" = None
    attempt: "asyncio.Task[None] | None" = None
    """The current attempt, or the current wait for a slot or for the store."""
    has_slot: bool = False
    cancelled: bool = False
    lost: bool = False
    """Whether another worker has the run."""
    stop_up_to: int | None = None
    """Number of the newest event when a user last asked to stop; None if no stop is requested."""
    stop_waiters: list["asyncio.Future[None]"] = field(default_factory=list["asyncio.Future[None]"])

    @property
    def is_ending(self) -> bool:
        """Whether a stop or a cancellation has been requested."""
        return self.cancelled or self.stop_up_to is not None

    def interrupt(self) -> None:
        """Cancel the current attempt, so that the task looks at the requests."""
        if self.attempt is not None:
            self.attempt.cancel()

    def request_stop(self, up_to: int) -> "asyncio.Future[None]":
        """Request a stop, which precedes all other requests. The future is done once the stop is carried out."""
        self.stop_up_to = max(up_to, self.stop_up_to or 0)
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stopped.add_done_callback(_retrieve_exception)
        self.stop_waiters.append(stopped)
        self.interrupt()
        return stopped


class RunSupervisor:
    """Carries out the runs of this process. The queue decides which runs to start."""

    def __init__(
        self,
        worker: RunWorker,
        *,
        max_runs: int = MAX_RUNS,
        on_end: Callable[[str, RunOutcome], None] = lambda session_id, outcome: None,
    ) -> None:
        """Create a supervisor without runs.

        Args:
            worker: Makes the attempts.
            max_runs: Number of runs at once. An owner's first run may exceed it, so that it waits for no other owner.
            on_end: Called with the session ID when a run's task has ended and may be started again.
        """
        self._worker = worker
        self._on_end = on_end
        self.slots = FairSlots(max_runs, spare=max_runs)
        self._runs: dict[str, _SupervisedRun] = {}
        self._closing = False

    @property
    def active(self) -> int:
        """Number of runs in this process that do not wait for a slot."""
        return len(self._runs) - self.slots.waiting

    def has_run(self, session_id: str) -> bool:
        """Return whether the session's run is in this process."""
        return session_id in self._runs

    def start(
        self,
        session_id: str,
        *,
        owner: str,
        waited: float = 0.0,
        fencing_token: int | None = None,
        crashed: bool = False,
    ) -> None:
        """Start the session's run, which must not be in this process yet, once it has a slot.

        Args:
            session_id: The session.
            owner: Owner of the session.
            waited: Seconds that the run has waited in the store.
            fencing_token: Token of the lease under which the run writes.
            crashed: Whether the process that carried the run before has died.
        """
        since = asyncio.get_running_loop().time() - waited
        self._start(session_id, _SupervisedRun(owner, since, fencing_token, crashed, woken=True, only_stop=False))

    def wake(self, session_id: str) -> bool:
        """Interrupt the session's run, so that it reads new user messages. Return whether it is in this process."""
        run = self._runs.get(session_id)
        if run is not None:
            run.woken = True
            run.interrupt()
        return run is not None

    def request_stop(
        self,
        session_id: str,
        *,
        up_to: int,
        owner: str = "",
        fencing_token: int | None = None,
        crashed: bool = False,
        only_stop: bool = False,
    ) -> "asyncio.Future[None]":
        """Stop the session's run. If it is not in this process, start it only to stop it, with the other arguments.

        The future is done once `done` is stored. It fails with `StoreUnavailable` if the run could not be stopped and
        continues, here or elsewhere, and with `LeaseLost` if another worker has the run.

        Args:
            session_id: The session.
            up_to: Number of the newest event when the user asked to stop.
            owner: See `start`.
            fencing_token: See `start`.
            crashed: See `start`.
            only_stop: Leave newer user messages to another process.
        """
        run = self._runs.get(session_id)
        if run is None:
            since = asyncio.get_running_loop().time()
            run = _SupervisedRun(owner, since, fencing_token, crashed, woken=False, only_stop=only_stop)
            self._start(session_id, run)
        return run.request_stop(up_to)

    async def cancel(self, session_id: str, *, lost: bool = False) -> None:
        """Cancel the run without storing anything, and wait for its end. `lost`: another worker has it."""
        run = self._runs.get(session_id)
        if run is None or run.task is None:
            return
        run.cancelled, run.lost = True, run.lost or lost
        run.interrupt()
        await asyncio.wait([run.task])

    async def close(self) -> None:
        """Cancel all runs. They can continue from their checkpoints."""
        self._closing = True
        await asyncio.gather(*(self.cancel(session_id) for session_id in list(self._runs)))

    def _start(self, session_id: str, run: _SupervisedRun) -> None:
        self._runs[session_id] = run
        if run.woken:
            run.has_slot = self.slots.try_take(run.owner)
        run.task = asyncio.create_task(self._supervise(session_id, run), name=f"run {session_id}")

    async def _supervise(self, session_id: str, run: _SupervisedRun) -> None:
        """Carry out the run. No await separates the last look at the requests from the removal of the run."""
        outcome: RunOutcome = "failed"
        try:
            await self._attempt_until_done(session_id, run)
            outcome = "lost" if run.lost else "done"
        except Exception:  # Root of the task: an unexpected error must not block later runs of the session.
            log.exception("supervision of a run failed")
        finally:
            if self._runs.get(session_id) is run:
                del self._runs[session_id]
            if run.has_slot:
                self.slots.give_back(run.owner)
            _resolve(run.stop_waiters, self._why_not_stopped(run, outcome))
            self._on_end(session_id, outcome)

    def _why_not_stopped(self, run: _SupervisedRun, outcome: RunOutcome) -> AnkerError | None:
        """Return why a requested stop was not carried out when the task ended; None if the session is deleted."""
        if run.lost:
            return LeaseLost("another worker has this run")
        if self._closing or outcome == "failed":
            return StoreUnavailable(_NOT_STOPPED)
        return None

    async def _attempt_until_done(self, session_id: str, run: _SupervisedRun) -> None:
        reason, failures = CRASHED, 0
        while not run.cancelled:
            if run.stop_up_to is not None:
                await self._stop(session_id, run, run.stop_up_to)
                reason = STOPPED
                continue
            if run.only_stop or not run.woken:
                return
            if not run.has_slot:
                # A request interrupts the wait; the run keeps its turn.
                error = await self._interruptible(run, self.slots.take(run.owner, since=run.since))
                run.has_slot = error is None
                continue
            run.woken = False
            log.info("attempt started", extra={"session_id": session_id})
            attempt = Attempt(reason=reason, owner=run.owner, crashed=run.crashed, fencing_token=run.fencing_token)
            error = await self._interruptible(run, self._worker.work(session_id, attempt))
            failures = failures + 1 if isinstance(error, StoreUnavailable) else 0
            # An attempt that did not reach the store has not counted the crash before it.
            run.crashed = run.crashed and isinstance(error, StoreUnavailable)
            reason = await self._after_attempt(session_id, run, error, failures)

    async def _interruptible(self, run: _SupervisedRun, work: Coroutine[None, None, None]) -> BaseException | None:
        """Await `work` until it ends or a request interrupts it. Return its error, if any."""
        run.attempt = asyncio.create_task(work)
        await asyncio.wait([run.attempt])
        ended, run.attempt = run.attempt, None
        return asyncio.CancelledError() if ended.cancelled() else ended.exception()

    async def _after_attempt(
        self, session_id: str, run: _SupervisedRun, error: BaseException | None, failures: int
    ) -> str:
        """React to the end of an attempt. Return the reason to give to the next attempt, if there is one."""
        match error:
            case None:
                return CRASHED
            case asyncio.CancelledError():
                if not run.is_ending:
                    await self._kill_open_calls(session_id)
                return INTERRUPTED
            case Superseded():
                run.woken = True
                return INTERRUPTED
            case LeaseLost():
                run.cancelled = run.lost = True
                return CRASHED
            case StoreUnavailable():
                if failures == 1:
                    log.warning("run paused: the store is unavailable", extra={"error": str(error)})
                run.woken = True
                if not run.is_ending:
                    pause = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1]
                    await self._interruptible(run, asyncio.sleep(pause))
                return STORE_AWAY
            case _:
                log.error("attempt failed: unexpected error", exc_info=error)
                if not (run.is_ending or run.woken):
                    await self._interruptible(run, asyncio.sleep(FAULT_PAUSE_SECONDS))
                return CRASHED

    async def _stop(self, session_id: str, run: _SupervisedRun, up_to: int) -> None:
        """Let the worker finish the stopped run, and tell those who wait for it."""
        waiters, run.stop_up_to, run.stop_waiters = run.stop_waiters, None, []
        error: AnkerError | None = StoreUnavailable(_NOT_STOPPED)
        try:
            await self._worker.finish_stopped(session_id, up_to=up_to, fencing_token=run.fencing_token)
            error = None
        except Superseded:
            run.woken = True
            error = None
        except NotFound:
            log.info("the session was deleted while its run was being stopped")
            error = None
        except LeaseLost as lease_lost:
            run.cancelled = run.lost = True
            error = lease_lost
        except StoreUnavailable as unavailable:
            run.woken = True  # The caller is told that the run was not stopped, so it continues.
            error = unavailable
        finally:
            _resolve(waiters, error)

    async def _kill_open_calls(self, session_id: str) -> None:
        try:
            await self._worker.kill_open_calls(session_id)
        except (NotFound, StoreUnavailable) as error:
            log.warning("open calls of a cancelled attempt could not be read", extra={"error": str(error)})
        except Exception:  # An unexpected error here must not keep the run from continuing.
            log.exception("open calls of a cancelled attempt could not be killed")


class InlineRunQueue:
    """A `RunQueue` without leases. At start, the caller resumes every session whose status is `running`."""

    def __init__(self, worker: RunWorker, *, max_runs: int = MAX_RUNS) -> None:
        """Create a queue without runs; see `RunSupervisor`."""
        self._supervisor = RunSupervisor(worker, max_runs=max_runs)
        self._closing = False

    @property
    def active(self) -> int:
        """Implement `RunQueue.active`."""
        return self._supervisor.active

    @property
    def waiting(self) -> int:
        """Implement `RunQueue.waiting`."""
        return self._supervisor.slots.waiting

    def resume(self, session_id: str, *, owner: str) -> None:
        """Continue a run whose process died."""
        self._supervisor.start(session_id, owner=owner, crashed=True)

    async def wake(self, session_id: str, *, up_to: int, owner: str) -> None:
        """Implement `RunQueue.wake`."""
        if not self._closing and not self._supervisor.wake(session_id):
            self._supervisor.start(session_id, owner=owner)

    async def stop_run(self, session_id: str, *, up_to: int) -> None:
        """Implement `RunQueue.stop_run`."""
        await self._supervisor.request_stop(session_id, up_to=up_to)

    async def cancel_run(self, session_id: str) -> None:
        """Implement `RunQueue.cancel_run`."""
        await self._supervisor.cancel(session_id)

    async def close(self) -> None:
        """Implement `RunQueue.close`."""
        self._closing = True
        await self._supervisor.close()


def _resolve(waiters: list["asyncio.Future[None]"], error: AnkerError | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _retrieve_exception(future: "asyncio.Future[None]") -> None:
    """Mark the exception as retrieved. Nobody awaits the future if the caller of the stop was cancelled."""
    if not future.cancelled():
        future.exception()
