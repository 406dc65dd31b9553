"""When a sandbox was last used: what idle expiry goes by."""

from collections.abc import Callable
from types import TracebackType


class Activity:
    """Entered around every call on a sandbox, also by several at once.

    `clock` answers seconds that only grow, such as `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._under_way = 0
        self._last = clock()

    def __enter__(self) -> None:
        self._under_way += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._under_way -= 1
        self._last = self._clock()

    def touch(self) -> None:
        """Count as used now."""
        self._last = self._clock()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last use; 0 while a call is under way."""
        return 0.0 if self._under_way else self._clock() - self._last
