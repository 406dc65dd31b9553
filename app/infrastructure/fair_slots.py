"""Slots that owners share fairly: one owner's hundred waiting tasks do not delay another owner's first one."""

import asyncio
from bisect import insort
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from typing import NamedTuple


class _Waiter(NamedTuple):
    since: float
    number: int
    granted: "asyncio.Future[None]"


class FairSlots:
    """A limited number of slots. The next free one goes to the waiting owner that holds the fewest, then by age."""

    def __init__(self, limit: int, *, spare: int = 0) -> None:
        """Create free slots.

        Args:
            limit: Number of slots.
            spare: Number of slots beyond `limit`, for owners that hold none.
        """
        self._limit = limit
        self._spare = spare
        self._held: Counter[str] = Counter()
        self._waiters: dict[str, list[_Waiter]] = {}
        """The waiting tasks of each owner, oldest first."""
        self._numbers = count()

    @property
    def taken(self) -> int:
        """Number of slots that are taken."""
        return self._held.total()

    @property
    def waiting(self) -> int:
        """Number of tasks that wait for a slot."""
        return sum(map(len, self._waiters.values()))

    def held_by(self, owner: str) -> int:
        """Return the number of slots that `owner` has taken."""
        return self._held[owner]

    def has_room(self, owner: str | None, *, reserved: int = 0) -> bool:
        """Return whether `owner`, or with None any owner, can take a slot now.

        Args:
            owner: The owner.
            reserved: Number of slots that count as taken, too.
        """
        taken = self.taken + reserved
        is_first = owner is not None and not self._held[owner]
        return taken < self._limit + (self._spare if is_first else 0)

    def try_take(self, owner: str) -> bool:
        """Take a slot if one is free. Return whether it was."""
        if not self.has_room(owner):
            return False
        self._held[owner] += 1
        return True

    async def take(self, owner: str, *, since: float | None = None) -> None:
        """Take a slot; wait until it is this owner's turn.

        Args:
            owner: The owner.
            since: Time of the event loop's clock since which the task waits; None for now.
        """
        if self.try_take(owner):
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.time() if since is None else since, next(self._numbers), loop.create_future())
        insort(self._waiters.setdefault(owner, []), waiter)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.cancelled():
                self._remove(owner, waiter)
            else:  # Granted and cancelled at the same time.
                self.give_back(owner)
            raise

    def give_back(self, owner: str) -> None:
        """Return a slot of `owner`, and pass it on."""
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        while candidates := [each for each in self._waiters if self.has_room(each)]:
            chosen = min(candidates, key=lambda each: (self._held[each], self._waiters[each][0][:2]))
            waiter = self._waiters[chosen][0]
            self._remove(chosen, waiter)
            self._held[chosen] += 1
            waiter.granted.set_result(None)

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncGenerator[None]:
        """Hold a slot; wait until it is this owner's turn."""
        await self.take(owner)
        try:
            yield
        finally:
            self.give_back(owner)

    def _remove(self, owner: str, waiter: _Waiter) -> None:
        self._waiters[owner].remove(waiter)
        if not self._waiters[owner]:
            del self._waiters[owner]
