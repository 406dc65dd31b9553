"""The port `Browsers` with Playwright over CDP."""

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING

from app.domain.errors import SandboxUnavailable
from app.domain.external.sandbox import SandboxProvider

if TYPE_CHECKING:
    from app.infrastructure.browser.driver import Driver
    from app.infrastructure.browser.session import SessionBrowser

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
"""After which a connection is let go: it keeps the sandbox from resting, and the driver's memory in use."""
SWEEP_SECONDS = 30.0


class PlaywrightBrowsers:
    """Connects to the browsers of sandboxes; the driver is started by the first use. Close it."""

    def __init__(self, sandboxes: SandboxProvider, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._sandboxes = sandboxes
        self._idle_seconds = idle_seconds
        self._driver: Driver | None = None
        self._sessions: dict[str, SessionBrowser] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, session_id: str) -> "SessionBrowser":
        """See `Browsers.open`."""
        if self._closed:
            raise SandboxUnavailable("The service is shutting down.")
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep_forever(), name="browser sweeper")
        sandbox = await self._sandboxes.acquire(session_id)
        # Playwright is 8 MB and a twentieth of a second, which a service that nobody browses with need not spend.
        await asyncio.to_thread(import_module, "app.infrastructure.browser.session")
        browser = self._sessions.get(session_id) or self._new(session_id)
        browser.use(sandbox)
        return browser

    async def release(self, session_id: str) -> None:
        """See `Browsers.release`."""
        if (browser := self._sessions.pop(session_id, None)) is not None:
            await browser.release()

    async def sweep(self) -> int:
        """Let go of connections that were idle for too long, and of the driver with the last; answers how many."""
        now = asyncio.get_running_loop().time()
        idle = [
            session_id
            for session_id, browser in self._sessions.items()
            if not browser.busy and now - browser.last_used >= self._idle_seconds
        ]
        await asyncio.gather(*(self.release(session_id) for session_id in idle))
        if self._driver is not None:
            await self._spare(self._driver)
        return len(idle)

    async def close(self) -> None:
        """See `Browsers.close`. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
            self._sweeper = None
        await asyncio.gather(*(self.release(session_id) for session_id in list(self._sessions)))
        if self._driver is not None:
            await self._driver.close()

    async def _spare(self, driver: "Driver") -> None:
        """End the driver when nothing is connected, and a heavy one as soon as nothing is under way."""
        if not self._sessions:
            await driver.rest()
        elif driver.is_heavy and not any(browser.busy for browser in self._sessions.values()):
            log.warning("the browser driver has grown too large, and is started anew")
            await driver.close()

    def _new(self, session_id: str) -> "SessionBrowser":
        from app.infrastructure.browser.driver import Driver
        from app.infrastructure.browser.session import SessionBrowser

        if self._driver is None:
            self._driver = Driver()
        browser = self._sessions[session_id] = SessionBrowser(self._driver)
        return browser

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_SECONDS, self._idle_seconds))
            if let_go := await self.sweep():
                log.info("let go of %d idle browsers", let_go)
