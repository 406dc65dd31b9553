"""Port of storage: who may carry on a session's run. The truth about it, whatever queue brings the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one holder to carry on one session's run, until it is given back or its time is over.

    Commits made under a lease carry its token (`Commit.fencing_token`). Once the session is leased again, the store
    refuses every commit that carries an older token.
    """

    session_id: str
    token: int
    """The fencing token: above that of every earlier lease of the session."""
    last_user_message: int
    """Number of the user's newest message; 0 when there is none."""
    stop_up_to: int | None = None
    """The user wants the run of the words up to this number ended; None when nobody asked."""
    previous_holder_lost: bool = False
    """The lease before this one was never given back: its holder died, or lost touch with the store."""


class LeaseRepository(Protocol):
    """Leases by session. All times are the store's own: the clocks of the holders do not matter.

    Raises (every method):
        StoreUnavailable: the store cannot be reached; whether something was written is not known.
    """

    async def acquire(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
        """Lease the session for `seconds`; None when somebody's lease still runs, the holder's own included.

        For some seconds after the store was away, one that ran out meanwhile counts as running: its holder could not
        renew it.

        Raises:
            NotFound: no such session.
        """
        ...

    async def renew(self, *, holder: str, seconds: float) -> Sequence[Lease]:
        """Make every lease of `holder` run for `seconds` from now, as one write; answers those that it still has.

        A lease whose time was over is renewed as well, as long as nobody else has taken its session.
        """
        ...

    async def release(self, lease: Lease) -> bool:
        """Give the lease back; answers whether the session is `active`, so that there is, or is again, work to do.

        False also when the lease was lost already, or the session is gone.
        """
        ...

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        """Lease the session whoever has it, and answer who had a lease that still ran; None when nobody had.

        Raises:
            NotFound: no such session.
        """
        ...

    async def list_claimable(self, *, limit: int) -> Sequence[str]:
        """Ids of sessions with work and without a holder, longest waiting first: those that are `active`, or whose
        stop was asked for, and whose lease was given back, never taken, or is over."""
        ...

    async def request_stop(self, session_id: str, *, up_to: int) -> None:
        """Write down that the run of the words up to `up_to` is to end; the largest number asked for counts.

        Raises:
            NotFound: no such session.
        """
        ...

    async def requested_stop(self, session_id: str) -> int | None:
        """What `ask_stop` wrote and nobody has answered yet.

        Raises:
            NotFound: no such session.
        """
        ...

    async def clear_stop_request(self, session_id: str, *, up_to: int) -> None:
        """Forget what `ask_stop` wrote, unless it names a number above `up_to`. Nothing when the session is gone."""
        ...
