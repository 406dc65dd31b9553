"""The run queue of a process that owns its store: all runs are in this process."""

from app.domain.external.run_queue import RunWorker
from app.infrastructure.queue.supervisor import RunSupervisor


class InlineRunQueue:
    """A `RunQueue` without leases. At start, the caller resumes every session whose status is `active`."""

    def __init__(self, worker: RunWorker) -> None:
        self._supervisor = RunSupervisor(worker)
        self._closing = False

    @property
    def active(self) -> int:
        """Implement `RunQueue.active`."""
        return self._supervisor.active

    def resume(self, session_id: str) -> None:
        """Continue a run whose process died."""
        self._supervisor.start(session_id, crashed=True)

    async def wake(self, session_id: str, *, up_to: int) -> None:
        """Implement `RunQueue.wake`."""
        if self._closing:
            return
        if self._supervisor.has_run(session_id):
            self._supervisor.wake(session_id)
        else:
            self._supervisor.start(session_id)

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
