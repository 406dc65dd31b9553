"""Port: messages between the processes of the service about a session's run. They are hints: the store decides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

SignalKind = Literal["wake", "stop", "cancel", "settled"]
"""What a signal says.

- `wake`: the session has messages up to number `up_to` to read.
- `stop`: the run of the messages up to `up_to` is to stop.
- `cancel`: the session is being deleted; nothing of it may continue.
- `settled`: what was requested of the run is done.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A message about the run of a session."""

    kind: SignalKind
    session_id: str
    up_to: int = 0


class Signals(Protocol):
    """Sends and receives signals. Delivery is best effort: a signal may be lost, or arrive twice."""

    def send(self, signal: Signal) -> None:
        """Send `signal` to every other process soon. Never block, never fail."""
        ...

    def listen(self, on_signal: Callable[[Signal], None]) -> None:
        """Call `on_signal` on the event loop with every signal of other processes. There is one listener a process."""
        ...
