"""Ports: the queue that hands runs to workers, and the worker that carries them out."""

from dataclasses import dataclass
from typing import Protocol


class RunQueue(Protocol):
    """Starts, interrupts and stops runs. A session has at most one run at a time, in whichever process."""

    @property
    def active(self) -> int:
        """Number of runs in this process, without those that wait for their turn."""
        ...

    @property
    def waiting(self) -> int:
        """Number of runs that wait for their turn, as far as this process knows."""
        ...

    async def wake(self, session_id: str, *, up_to: int, owner: str) -> None:
        """Start the session's run, or interrupt it, because messages up to event number `up_to` are stored.

        A process carries a limited number of runs. Others wait, and the next turn goes to the owner with the fewest
        runs, then to the run that waits longest. Stop and deletion of a waiting run take effect at once.
        """
        ...

    async def stop_run(self, session_id: str, *, up_to: int) -> None:
        """Stop the run of the messages up to event number `up_to`, and return once `done` is stored. Idempotent.

        Raises:
            StoreUnavailable: The run could not be stopped and continues.
        """
        ...

    async def cancel_run(self, session_id: str) -> None:
        """Cancel the run without storing any event, because the session is being deleted. Return once it has ended."""
        ...

    async def close(self) -> None:
        """Cancel all runs of this process. They continue from their checkpoints in another process or later."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The circumstances of one attempt at a run."""

    reason: str
    """Why the previous attempt ended early, as text for the model and the log."""
    owner: str = ""
    """Owner of the session."""
    crashed: bool = False
    """Whether the previous attempt ended because its process died."""
    fencing_token: int | None = None
    """Fencing token of the lease that this attempt writes under; None where one process owns the store."""


class RunWorker(Protocol):
    """Carries out runs for a queue. A cancelled call leaves the session as its last checkpoint says.

    Raises (`work` and `finish_stopped`):
        Superseded: A newer user message is stored; call `work`.
        StoreUnavailable: Call again when the store is available.
        LeaseLost: Another worker has the run; do nothing more.
    """

    async def work(self, session_id: str, attempt: Attempt) -> None:
        """Make one attempt: continue the session's run until it waits for the user or ends."""
        ...

    async def kill_open_calls(self, session_id: str) -> None:
        """Kill what the tool calls of a cancelled attempt left running in the sandbox."""
        ...

    async def finish_stopped(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        """Kill everything in the sandbox, close open calls and steps, and store `done`. No attempt may be in progress.

        `up_to`: number of the newest event when the user asked to stop.
        """
        ...

    async def release(self, session_id: str) -> None:
        """Release what this process holds for the session: it is deleted, or another process has its run."""
        ...
