"""Rates that are counted in the memory of this process, with the library `limits`."""

import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from app.domain.models.limits import Rate


class MemoryRateCounter:
    """Implements `RateCounter` for one process."""

    def __init__(self) -> None:
        # A storage for each rate: with every hit, a storage looks for expired ones among all of its keys.
        self._limiters: dict[str, FixedWindowRateLimiter] = {}

    async def hit(self, rate: Rate, key: str, cost: int = 1) -> float:
        """Implement `RateCounter.hit`."""
        if rate.name not in self._limiters:
            self._limiters[rate.name] = FixedWindowRateLimiter(MemoryStorage())
        return await hit(self._limiters[rate.name], rate, key, cost)


async def hit(limiter: FixedWindowRateLimiter, rate: Rate, key: str, cost: int) -> float:
    """Count `cost` for `key`, or return the seconds until the window ends if it does not fit into it."""
    item = RateLimitItemPerSecond(rate.amount, rate.seconds, namespace=rate.name)
    # A hit counts even if it is refused. One of a larger cost must not use up what is left for smaller ones.
    if (cost == 1 or await limiter.test(item, key, cost=cost)) and await limiter.hit(item, key, cost=cost):
        return 0.0
    window = await limiter.get_window_stats(item, key)
    return max(window.reset_time - time.time(), 0.001)
