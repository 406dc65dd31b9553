"""What is asked of Redis, and how it fails: words that the adapters share without the vendor's package."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

Command = tuple[str | bytes | int, ...]


class LinkBroken(Exception):
    """The connection is no more. Its text is the kind of failure and never an address."""


class Refused(Exception):
    """Redis answered a command with an error. Its text is the kind of error and never an address."""


class NotAllowed(Refused):
    """The user that we are to Redis has no right to that command, key or channel."""


class Order(NamedTuple):
    """A command and what follows from it.

    `then` hears the reply; not when the command was refused or the connection broke. `news`: when it cannot be known
    that the command arrived, this channel is told later that there was something. `question`: when it was not
    answered it is asked again; the newest of those with the same name stands for all.
    """

    command: Command
    then: Callable[[object], None] | None = None
    news: bytes | None = None
    question: bytes | None = None


class Source(Protocol):
    """Something whose newest state is sent, however often it changed since the last time."""

    def orders(self) -> Iterable[Order]:
        """What is to be sent now, after everything that was published. Called when Redis can be reached."""
        ...

    def missed(self) -> None:
        """Redis went away: what `orders` answered last may not have arrived."""
        ...
