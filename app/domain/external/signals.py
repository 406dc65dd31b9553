"""Port: a word from one process of the service to all the others about a session's run. A hint, never the truth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """`wake`: there are words up to number `up_to` to read. `stop`: the run of the words up to `up_to` is to end.
    `cancel`: the session is being deleted, nothing of it may go on. `settled`: what was asked of the run is done.
    """

    kind: Literal["wake", "stop", "cancel", "settled"]
    session_id: str
    up_to: int = 0


class Signals(Protocol):
    """Best effort: a signal may be lost, and may come twice. Whoever needs an answer also looks into the store."""

    def send(self, signal: Signal) -> None:
        """Tell every other process, soon. Never waits, never fails."""
        ...

    def listen(self, hear: Callable[[Signal], None]) -> None:
        """From now on call `hear`, on the event loop, with what other processes send; not with one's own. One
        listener a process."""
        ...
