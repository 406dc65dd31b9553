"""Storage port: leases, which decide who may carry a session's run, whatever queue brings the work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one holder to carry one session's run, until the holder releases it or it expires.

    A commit made under a lease carries its token (`Commit.fencing_token`). Once the session is leased again, the store
    refuses every commit that carries an older token.
    """

    session_id: str
    token: int
    """Fencing token; higher than the token of every earlier lease of the session."""
    owner: str
    """Owner of the session."""
    last_user_message: int
    """Event number of the newest user message; 0 when there is none."""
    stop_up_to: int | None = None
    """Event number of the newest user message whose run the user asked to stop; None when nobody asked."""
    previous_holder_lost: bool = False
    """Whether the previous lease was not released: its holder died, or lost its connection to the store."""
    waited: float = field(default=0.0, compare=False)
    """Seconds for which the session had work and no holder when it was acquired."""


class ClaimableSession(NamedTuple):
    """A session with work that no process carries."""

    session_id: str
    owner: str
    is_stopping: bool
    """Whether its run is to stop, which takes a moment. Otherwise the run is to start or to continue."""


class LeaseRepository(Protocol):
    """Leases by session. The clock of the store decides all times; the clocks of the holders do not matter.

    Every method raises:
        StoreUnavailable: The store cannot be reached. Whether a write was stored is not known.
    """

    async def acquire(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
        """Lease the session for `seconds`. Return None while any lease is valid, one of `holder` included.

        For a few seconds after the store was unavailable, an expired lease still counts as valid, because its holder
        could not renew it.

        Raises:
            NotFound: The session does not exist.
        """
        ...

    async def renew(self, *, holder: str, seconds: float) -> Sequence[Lease]:
        """Extend every lease of `holder` to `seconds` from now, in one write. Return the leases that it still holds.

        An expired lease is renewed too, unless another holder has acquired its session.
        """
        ...

    async def release(self, lease: Lease) -> bool:
        """Release the lease. Return whether the session is `running`, which means that there is work to do.

        Return False if the lease was lost before, or if the session does not exist any more.
        """
        ...

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        """Lease the session even while another lease is valid. Return the holder of that lease, None if there was none.

        Raises:
            NotFound: The session does not exist.
        """
        ...

    async def list_claimable(self, *, limit: int) -> Sequence[ClaimableSession]:
        """Return sessions with work and without a valid lease, in the order in which they should be leased.

        A session has work if it is `running`, or if a stop was requested and not cleared. The latter come first. Of
        the others, those of the owners with the fewest leased sessions come first, each counting as leased for the
        next one of its owner; then those that wait longest.
        """
        ...

    async def request_stop(self, session_id: str, *, up_to: int) -> None:
        """Record that the run of the user messages up to `up_to` must end. The largest recorded number counts.

        Raises:
            NotFound: The session does not exist.
        """
        ...

    async def requested_stop(self, session_id: str) -> int | None:
        """Return the number that `request_stop` recorded, or None if there is none or it was cleared.

        Raises:
            NotFound: The session does not exist.
        """
        ...

    async def clear_stop_request(self, session_id: str, *, up_to: int) -> None:
        """Remove the recorded stop unless its number is above `up_to`. Do nothing if the session does not exist."""
        ...
