"""Ports: counters for limits, which the processes of the service share if they can.

A counter that cannot be shared at the moment counts in its own process. No method fails or waits for long.
"""

from typing import Protocol

from app.domain.models.limits import Rate


class RateCounter(Protocol):
    """Counts what happens in windows of time."""

    async def hit(self, rate: Rate, key: str, cost: int = 1) -> float:
        """Count `cost` for `key`. Return 0, or the seconds until it is allowed if it would exceed the rate."""
        ...


class StreamCounts(Protocol):
    """Knows how many streams each owner has open in other processes."""

    def elsewhere(self, owner: str) -> int:
        """Return the number of the owner's open streams in other processes."""
        ...

    def announce(self, owner: str, count: int) -> None:
        """Tell other processes how many streams the owner has open in this one."""
        ...
