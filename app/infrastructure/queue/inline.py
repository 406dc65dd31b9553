"""The run queue of a single process: a task for each session whose run is going."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field

from app.domain.errors import NotFound, StoreUnavailable, Superseded
from app.domain.external.run_queue import RunWorker
from app.domain.services.flows.plan_act import CRASHED, INTERRUPTED, STOPPED

log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.2, 0.5, 1, 2, 5)
"""How long a run rests between two looks whether the store is back; the last is used from then on."""


@dataclass(slots=True, eq=False)
class _Run:
    """One session's run and what it has been asked since its current attempt began."""

    driver: "asyncio.Task[None] | None" = None
    attempt: "asyncio.Task[None] | None" = None
    woken: bool = True
    cancelled: bool = False
    stop_upto: int | None = None
    stopped: list["asyncio.Future[None]"] = field(default_factory=list["asyncio.Future[None]"])

    @property
    def ending(self) -> bool:
        """Whether a stop or a cancellation has been asked for."""
        return self.cancelled or self.stop_upto is not None

    def cut(self) -> None:
        """Cut the current attempt short, so that the driver looks at what was asked."""
        if self.attempt is not None:
            self.attempt.cancel()


class InlineRunQueue:
    """A `RunQueue` without a broker. What survives the process is in the journal: at start, `wake` every session
    whose status is `active`."""

    def __init__(self, worker: RunWorker) -> None:
        self._worker = worker
        self._runs: dict[str, _Run] = {}
        self._closing = False

    @property
    def active(self) -> int:
        """How many runs are going."""
        return len(self._runs)

    async def wake(self, session_id: str, *, upto: int) -> None:
        """See `RunQueue.wake`."""
        if self._closing:
            return
        run = self._runs.get(session_id)
        if run is None:
            self._start(session_id)
            return
        run.woken = True
        run.cut()

    async def stop(self, session_id: str, *, upto: int) -> None:
        """See `RunQueue.stop`."""
        run = self._runs.get(session_id)
        if run is None:
            run = self._start(session_id)
            run.woken = False
        run.stop_upto = upto
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run.stopped.append(done)
        run.cut()
        await done

    async def cancel(self, session_id: str) -> None:
        """See `RunQueue.cancel`."""
        run = self._runs.get(session_id)
        if run is None or run.driver is None:
            return
        run.cancelled = True
        run.cut()
        await asyncio.wait([run.driver])

    async def close(self) -> None:
        """See `RunQueue.close`."""
        self._closing = True
        drivers = [run.driver for run in self._runs.values() if run.driver is not None]
        for run in self._runs.values():
            run.cancelled = True
            run.cut()
        if drivers:
            await asyncio.wait(drivers)

    def _start(self, session_id: str) -> _Run:
        run = _Run()
        self._runs[session_id] = run
        run.driver = asyncio.create_task(self._drive(session_id, run), name=f"run {session_id}")
        return run

    async def _drive(self, session_id: str, run: _Run) -> None:
        """Attempt after attempt until nothing more is asked. No await stands between the last look at what was asked
        and the run's removal, so that nothing asked is missed."""
        reason, failures = CRASHED, 0
        try:
            while not run.cancelled:
                if run.stop_upto is not None:
                    await self._stop(session_id, run)
                    reason = STOPPED
                    continue
                if not run.woken:
                    return
                run.woken = False
                error = await self._attempt(run, self._worker.work(session_id, reason))
                failures = failures + 1 if isinstance(error, StoreUnavailable) else 0
                reason = await self._after(session_id, run, error, failures)
        except Exception:  # the root of the driver: a fault of ours must not leave the session without a run
            log.exception("the run's driver failed")
        finally:
            if self._runs.get(session_id) is run:
                del self._runs[session_id]
            _settle(run.stopped, None)

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
            case StoreUnavailable():
                log.warning("the store is away; the run rests", extra={"error": str(error)})
                run.woken = True
                if not run.ending:
                    await self._attempt(run, asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1]))
                return CRASHED
            case _:
                log.error("an attempt failed in an unforeseen way", exc_info=error)
                return CRASHED

    async def _stop(self, session_id: str, run: _Run) -> None:
        upto, run.stop_upto = run.stop_upto or 0, None
        waiters, run.stopped = run.stopped, []
        error: StoreUnavailable | None = None
        await self._abort(session_id, everything=True)
        try:
            await self._worker.stop(session_id, upto=upto)
        except Superseded:
            run.woken = True
        except NotFound:
            log.info("the session was deleted while it was being stopped")
        except StoreUnavailable as away:
            error = away
            run.woken = True  # not stopped, and the caller is told so: the run goes on when the store is back
        _settle(waiters, error)

    async def _abort(self, session_id: str, *, everything: bool) -> None:
        try:
            await self._worker.abort(session_id, everything=everything)
        except (NotFound, StoreUnavailable) as error:
            log.warning("what was cut short could not be looked up", extra={"error": str(error)})


def _settle(waiters: list["asyncio.Future[None]"], error: StoreUnavailable | None) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
