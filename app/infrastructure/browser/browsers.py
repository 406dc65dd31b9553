"""The `Browsers` port on Playwright over CDP."""

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING

from app.domain.errors import SandboxUnavailable
from app.domain.external.sandbox import SandboxProvider

if TYPE_CHECKING:
    from app.infrastructure.browser.driver import PlaywrightDriver
    from app.infrastructure.browser.session import SessionBrowser

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""Time in seconds after which an idle connection is closed: it keeps the sandbox from resting, and uses memory."""
SWEEP_SECONDS = 30.0
"""Maximum time in seconds between two sweeps."""


class PlaywrightBrowsers:
    """Connects to the browsers of sandboxes. The first use starts the driver. Close it."""

    def __init__(self, sandboxes: SandboxProvider, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._sandboxes = sandboxes
        self._idle_seconds = idle_seconds
        self._driver: PlaywrightDriver | None = None
        self._sessions: dict[str, SessionBrowser] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, session_id: str) -> "SessionBrowser":
        """Implement `Browsers.open`."""
        if self._closed:
            raise SandboxUnavailable("The service is shutting down.")
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep_forever(), name="browser sweeper")
        sandbox = await self._sandboxes.acquire(session_id)
        # Importing Playwright takes 8 MB and 50 ms, which a service without browser tasks saves.
        await asyncio.to_thread(import_module, "app.infrastructure.browser.session")
        from app.infrastructure.browser.driver import PlaywrightDriver
        from app.infrastructure.browser.session import SessionBrowser

        driver = self._driver = self._driver or PlaywrightDriver()
        browser = self._sessions.setdefault(session_id, SessionBrowser(driver, sandbox))
        browser.sandbox = sandbox
        return browser

    async def release(self, session_id: str) -> None:
        """Implement `Browsers.release`."""
        if (browser := self._sessions.pop(session_id, None)) is not None:
            await browser.release()

    async def sweep(self) -> int:
        """Close idle connections, and an unused or too large driver. Return the number of closed connections."""
        now = asyncio.get_running_loop().time()
        idle = [
            session_id
            for session_id, browser in self._sessions.items()
            if not browser.is_busy and now - browser.last_used >= self._idle_seconds
        ]
        await asyncio.gather(*(self.release(session_id) for session_id in idle))
        if self._driver is None:
            return len(idle)
        if not self._sessions:
            await self._driver.stop_if_unused()
        elif self._driver.is_large and not any(browser.is_busy for browser in self._sessions.values()):
            log.warning("the browser driver exceeds its memory limit and is restarted")
            await self._driver.close()
        return len(idle)

    async def close(self) -> None:
        """Implement `Browsers.close`. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
            self._sweeper = None
        await asyncio.gather(*(self.release(session_id) for session_id in list(self._sessions)))
        if self._driver is not None:
            await self._driver.close()

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._idle_seconds))
            if closed := await self.sweep():
                log.info("closed %d idle browser connections", closed)
