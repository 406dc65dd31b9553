"""Tracking of use, so that an unused sandbox can end itself."""

import asyncio
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send


class Activity:
    """Counts uses in progress and records when the last one ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start as unused. `clock`: returns monotonic seconds."""
        self._clock = clock
        self._open = 0
        self._last = clock()

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last use; 0 during a use."""
        return 0.0 if self._open else self._clock() - self._last

    @contextmanager
    def use(self) -> Generator[None]:
        """Count as use while the context is entered."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._last = self._clock()

    def touch(self) -> None:
        """Record a use at this moment."""
        self._last = self._clock()

    async def wait_until_idle(self, seconds: float) -> None:
        """Return once the sandbox was unused for `seconds`."""
        while True:
            # During a use the remaining time is always the whole time.
            left = seconds - self.idle_seconds
            if left <= 0:
                return
            await asyncio.sleep(left)


VIEWER = b"x-anker-viewer"
"""Header of requests that a person's view causes. A person who only looks on does not keep the sandbox."""


class ActivityMiddleware:
    """ASGI middleware that counts every request as use, except requests of viewers and to `exempt_paths`."""

    def __init__(self, app: ASGIApp, *, activity: Activity, exempt_paths: Collection[str]) -> None:
        self._app = app
        self._activity = activity
        self._spared = exempt_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if (
            scope["type"] == "lifespan"
            or scope["path"] in self._spared
            or any(name == VIEWER for name, _ in scope["headers"])
        ):
            await self._app(scope, receive, send)
            return
        with self._activity.use():
            await self._app(scope, receive, send)
