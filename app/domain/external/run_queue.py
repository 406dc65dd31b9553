"""Ports: the queue that brings a session's words to a worker, and the worker."""

from dataclasses import dataclass
from typing import Protocol


class RunQueue(Protocol):
    """At most one run a session goes at any time, in whichever process."""

    @property
    def active(self) -> int:
        """How many runs are going in this process."""
        ...

    async def wake(self, session_id: str, *, up_to: int) -> None:
        """There are words up to event number `up_to` to read: start the session's run, or interrupt the one that is
        going."""
        ...

    async def stop(self, session_id: str, *, up_to: int) -> None:
        """End the run of the words up to event number `up_to`; returns when `done` is written. Idempotent.

        Raises:
            StoreUnavailable: the run could not be ended, and goes on.
        """
        ...

    async def cancel(self, session_id: str) -> None:
        """Cut the run short without a word (its session is being deleted); returns when nothing of it goes on."""
        ...

    async def close(self) -> None:
        """Shut down: runs are cut short and handed over; their checkpoints say where to go on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One go at a session's run."""

    reason: str
    """Why the attempt before this one stopped, in words for the model and the log."""
    crashed: bool = False
    """Whether the process that made the attempt before this one died with it."""
    fencing_token: int | None = None
    """The token of the lease under which it writes; None in a process that has its store for itself."""


class RunWorker(Protocol):
    """What a queue calls. Each call is one attempt; a cancelled one leaves the session as its checkpoint says.

    Raises (work, stop):
        Superseded: the user said more in the meantime; call `work`.
        StoreUnavailable: call again when the store is back.
        LeaseLost: another worker has the run; leave it alone.
    """

    async def work(self, session_id: str, attempt: Attempt) -> None:
        """Go on with the session's run until it rests or ends."""
        ...

    async def abort(self, session_id: str, *, everything: bool) -> None:
        """End in the sandbox what a cancelled attempt left running."""
        ...

    async def stop(self, session_id: str, *, up_to: int, fencing_token: int | None) -> None:
        """Close everything that is open and write `done`."""
        ...

    async def forget(self, session_id: str) -> None:
        """Let go of what this process holds for the session's runs: it is deleted, or another process has it."""
        ...
