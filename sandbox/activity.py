"""When the sandbox was last used, and its end when that is long ago."""

import asyncio
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send


class Activity:
    """Counts what is open, and remembers when the last of it ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that only grow."""
        self._clock = clock
        self._open = 0
        self._last = clock()

    @property
    def idle_seconds(self) -> float:
        """For how long nothing has used the sandbox; 0 while something does."""
        return 0.0 if self._open else self._clock() - self._last

    @contextmanager
    def use(self) -> Generator[None]:
        """The sandbox is used for as long as this is entered."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._last = self._clock()

    def touch(self) -> None:
        """The sandbox was used now."""
        self._last = self._clock()

    async def idle_for(self, seconds: float) -> None:
        """Returns once nothing has used the sandbox for `seconds`."""
        while True:
            # While it is used, the time that is left is only where it begins again.
            left = seconds - self.idle_seconds
            if left <= 0:
                return
            await asyncio.sleep(left)


class CountActivity:
    """Has every request count as use, as plain ASGI; but for those to paths in `spared`."""

    def __init__(self, app: ASGIApp, *, activity: Activity, spared: Collection[str]) -> None:
        self._app = app
        self._activity = activity
        self._spared = spared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan" or scope["path"] in self._spared:
            await self._app(scope, receive, send)
            return
        with self._activity.use():
            await self._app(scope, receive, send)
