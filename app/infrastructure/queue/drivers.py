"""The runs that go in this process: a task for each session, and what it has been asked."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Literal

from app.domain.errors import AnkerError, LeaseLost, NotFound, StoreUnavailable, Superseded
from app.domain.external.run_queue import Attempt, RunWorker
from app.domain.services.flows.plan_act import CRASHED, INTERRUPTED, STOPPED, STORE_AWAY

log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.2, 0.5, 1, 2)
"""How long a run rests between two looks whether the store is back; the last is used from then on."""

PAUSE_SECONDS = 2.0
"""How long a run rests that failed for a fault of ours: it is not tried again in a tight circle."""

_NOT_ENDED = "the run could not be ended"

Ending = Literal["done", "lost", "failed"]
"""How a session's driver ended: nothing is left to do, another worker has the run, or a fault of ours."""


@dataclass(slots=True, eq=False)
class _Run:
    """One session's run and what it has been asked since its current attempt began."""

    fencing_token: int | None
    crashed: bool
    woken: bool
    only_stop: bool
    driver: "asyncio.Task[None] | None" = None
    attempt: "asyncio.Task[None] | None" = None
    cancelled: bool = False
    lost: bool = False
    stop_up_to: int | None = None
    stopped: list["asyncio.Future[None]"] = field(default_factory=list["asyncio.Future[None]"])

    @property
    def ending(self) -> bool:
        """Whether a stop or a cancellation has been asked for."""
        return self.cancelled or self.stop_up_to is not None

    def cut(self) -> None:
        """Cut the current attempt short, so that the driver looks at what was asked."""
        if self.attempt is not None:
            self.attempt.cancel()

    def ask_stop(self, up_to: int) -> "asyncio.Future[None]":
        """Put a stop before everything else that was asked; the future is done when it is carried out."""
        self.stop_up_to = max(up_to, self.stop_up_to or 0)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        self.stopped.append(done)
        self.cut()
        return done


class Drivers:
    """Every run of this process, attempt after attempt. Who may start one is the queue's affair.

    `ended` is called with a session's id when its driver has ended and the session may be started again.
    """

    def __init__(self, worker: RunWorker, *, ended: Callable[[str, Ending], None] = lambda session_id, ending: None):
        self._worker = worker
        self._ended = ended
        self._runs: dict[str, _Run] = {}
        self._closing = False

    @property
    def active(self) -> int:
        """How many runs are going."""
        return len(self._runs)

    def goes(self, session_id: str) -> bool:
        """Whether the session's run is going here."""
        return session_id in self._runs

    def start(
        self,
        session_id: str,
        *,
        fencing_token: int | None = None,
        crashed: bool = False,
        stop_up_to: int | None = None,
        only_stop: bool = False,
    ) -> "asyncio.Future[None] | None":
        """Start a run that does not go here yet. With `stop_up_to` it is only ended, as `stop` does: the answer is
        done when that is. `only_stop`: what there may be to do after that is left to another process."""
        run = _Run(fencing_token=fencing_token, crashed=crashed, woken=stop_up_to is None, only_stop=only_stop)
        self._runs[session_id] = run
        stopped = None if stop_up_to is None else run.ask_stop(stop_up_to)
        run.driver = asyncio.create_task(self._drive(session_id, run), name=f"run {session_id}")
        return stopped

    def wake(self, session_id: str) -> None:
        """Interrupt a run that goes here: there are new words."""
        run = self._runs[session_id]
        run.woken = True
        run.cut()

    def stop(self, session_id: str, *, up_to: int) -> "asyncio.Future[None]":
        """End a run that goes here; the answer is done when `done` is written.

        It fails with `StoreUnavailable` when the run could not be ended, and goes on here or, when this process is
        ending, elsewhere, and with `LeaseLost` when it is another worker's by now.
        """
        return self._runs[session_id].ask_stop(up_to)

    async def cancel(self, session_id: str, *, lost: bool = False) -> None:
        """Cut a run short without a word; returns when nothing of it goes on. `lost`: another worker has it."""
        run = self._runs.get(session_id)
        if run is None or run.driver is None:
            return
        run.cancelled, run.lost = True, run.lost or lost
        run.cut()
        await asyncio.wait([run.driver])

    async def close(self) -> None:
        """Cut every run short; their checkpoints say where to go on."""
        self._closing = True
        await asyncio.gather(*(self.cancel(session_id) for session_id in list(self._runs)))

    async def _drive(self, session_id: str, run: _Run) -> None:
        """Attempt after attempt until nothing more is asked. No await stands between the last look at what was asked
        and the run's removal, so that nothing asked is missed."""
        ending: Ending = "failed"
        try:
            await self._go_on(session_id, run)
            ending = "lost" if run.lost else "done"
        except Exception:  # the root of the driver: a fault of ours must not leave the session without a run
            log.exception("the run's driver failed")
        finally:
            if self._runs.get(session_id) is run:
                del self._runs[session_id]
            _settle(run.stopped, self._not_stopped(run, ending))
            self._ended(session_id, ending)

    def _not_stopped(self, run: _Run, ending: Ending) -> AnkerError | None:
        """Why a stop that was asked for was not carried out when the driver ended; None: its session is deleted."""
        if run.lost:
            return LeaseLost("another worker has this run")
        if self._closing or ending == "failed":
            return StoreUnavailable(_NOT_ENDED)
        return None

    async def _go_on(self, session_id: str, run: _Run) -> None:
        reason, failures = CRASHED, 0
        while not run.cancelled:
            if run.stop_up_to is not None:
                await self._stop(session_id, run)
                reason = STOPPED
                continue
            if run.only_stop or not run.woken:
                return
            run.woken = False
            attempt = Attempt(reason=reason, crashed=run.crashed, fencing_token=run.fencing_token)
            error = await self._attempt(run, self._worker.work(session_id, attempt))
            failures = failures + 1 if isinstance(error, StoreUnavailable) else 0
            # Until an attempt has reached the store, the crash before it is not counted.
            run.crashed = run.crashed and isinstance(error, StoreUnavailable)
            reason = await self._after(session_id, run, error, failures)

    async def _attempt(self, run: _Run, attempt: Coroutine[None, None, None]) -> BaseException | None:
        """Let `attempt` go on until it ends or is cut short; answers how it failed, if it did."""
        run.attempt = asyncio.create_task(attempt)
        await asyncio.wait([run.attempt])
        ended, run.attempt = run.attempt, None
        return asyncio.CancelledError() if ended.cancelled() else ended.exception()

    async def _after(self, session_id: str, run: _Run, error: BaseException | None, failures: int) -> str:
        """Get ready for what follows an attempt; answers the reason that the next one is given."""
        match error:
            case None:
                return CRASHED
            case asyncio.CancelledError():
                if not run.ending:
                    await self._abort(session_id, everything=False)
                return INTERRUPTED
            case Superseded():
                run.woken = True
                return INTERRUPTED
            case LeaseLost():
                run.cancelled = run.lost = True
                return CRASHED
            case StoreUnavailable():
                if failures == 1:
                    log.warning("the store is away; the run rests", extra={"error": str(error)})
                run.woken = True
                if not run.ending:
                    await self._attempt(run, asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1]))
                return STORE_AWAY
            case _:
                log.error("an attempt failed in an unforeseen way", exc_info=error)
                if not (run.ending or run.woken):
                    await self._attempt(run, asyncio.sleep(PAUSE_SECONDS))
                return CRASHED

    async def _stop(self, session_id: str, run: _Run) -> None:
        up_to, run.stop_up_to = run.stop_up_to or 0, None
        waiters, run.stopped = run.stopped, []
        error: AnkerError | None = StoreUnavailable(_NOT_ENDED)
        try:
            await self._abort(session_id, everything=True)
            error = await self._end(session_id, run, up_to)
        finally:
            _settle(waiters, error)

    async def _end(self, session_id: str, run: _Run, up_to: int) -> AnkerError | None:
        """Let the worker write the end; answers why it is not written."""
        try:
            await self._worker.stop(session_id, up_to=up_to, fencing_token=run.fencing_token)
        except Superseded:
            run.woken = True
        except NotFound:
            log.info("the session was deleted while it was being stopped")
        except LeaseLost as lost:
            run.cancelled = run.lost = True
            return lost
        except StoreUnavailable as away:
            run.woken = True  # not stopped, and the caller is told so: the run goes on when the store is back
            return away
        return None

    async def _abort(self, session_id: str, *, everything: bool) -> None:
        try:
            await self._worker.abort(session_id, everything=everything)
        except (NotFound, StoreUnavailable) as error:
            log.warning("what was cut short could not be looked up", extra={"error": str(error)})
        except Exception:  # of the root of an end: whatever it left running, the run goes on or ends as was asked
            log.exception("what was cut short could not be ended")


def _settle(waiters: list["asyncio.Future[None]"], error: AnkerError | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _seen(future: "asyncio.Future[None]") -> None:
    """Whoever asked may have gone: then a failure is nobody's to look at."""
    if not future.cancelled():
        future.exception()
