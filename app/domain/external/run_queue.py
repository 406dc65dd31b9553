"""Ports: the queue that brings a session's words to a worker, and the worker."""

from typing import Protocol


class RunQueue(Protocol):
    """At most one run a session goes at any time, in whichever process."""

    async def wake(self, session_id: str, *, upto: int) -> None:
        """There are words up to event number `upto` to read: start the session's run, or interrupt the one that is
        going."""
        ...

    async def stop(self, session_id: str, *, upto: int) -> None:
        """End the run of the words up to event number `upto`; returns when `done` is written. Idempotent."""
        ...

    async def cancel(self, session_id: str) -> None:
        """Cut the run short without a word (its session is being deleted); returns when nothing of it goes on."""
        ...

    async def close(self) -> None:
        """Shut down: runs are cut short; their checkpoints say where to go on."""
        ...


class RunWorker(Protocol):
    """What a queue calls. Each call is one attempt; a cancelled one leaves the session as its checkpoint says.

    Raises (work, stop):
        Superseded: the user said more in the meantime; call `work`.
        StoreUnavailable: call again when the store is back.
    """

    async def work(self, session_id: str, reason: str) -> None:
        """Go on with the session's run until it rests or ends. `reason`: why the attempt before this one stopped."""
        ...

    async def abort(self, session_id: str, *, everything: bool) -> None:
        """End in the sandbox what a cancelled attempt left running."""
        ...

    async def stop(self, session_id: str, *, upto: int) -> None:
        """Close everything that is open and write `done`."""
        ...
