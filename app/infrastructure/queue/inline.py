"""The run queue of a process that has its store for itself: no broker, no leases."""

from app.domain.external.run_queue import RunWorker
from app.infrastructure.queue.drivers import Drivers


class InlineRunQueue:
    """A `RunQueue` without a broker. What survives the process is in the event_log: at start, `resume` every session
    whose status is `active`."""

    def __init__(self, worker: RunWorker) -> None:
        self._drivers = Drivers(worker)
        self._closing = False

    @property
    def active(self) -> int:
        """See `RunQueue.active`."""
        return self._drivers.active

    def resume(self, session_id: str) -> None:
        """Go on with a run that an earlier process was in the middle of."""
        self._drivers.start(session_id, crashed=True)

    async def wake(self, session_id: str, *, up_to: int) -> None:
        """See `RunQueue.wake`."""
        if self._closing:
            return
        if self._drivers.goes(session_id):
            self._drivers.wake(session_id)
        else:
            self._drivers.start(session_id)

    async def stop(self, session_id: str, *, up_to: int) -> None:
        """See `RunQueue.stop`."""
        if self._drivers.goes(session_id):
            await self._drivers.stop(session_id, up_to=up_to)
        elif (stopped := self._drivers.start(session_id, stop_up_to=up_to)) is not None:
            await stopped

    async def cancel(self, session_id: str) -> None:
        """See `RunQueue.cancel`."""
        await self._drivers.cancel(session_id)

    async def close(self) -> None:
        """See `RunQueue.close`."""
        self._closing = True
        await self._drivers.close()
