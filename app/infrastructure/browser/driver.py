"""The one Playwright driver of this process: a Node program of about 100 MB, started by the first use of a browser."""

import asyncio
import contextlib
import logging

from playwright.async_api import Browser, Playwright, async_playwright
from playwright.async_api import Error as PlaywrightError

from app.domain.errors import SandboxUnavailable

log = logging.getLogger(__name__)

START_SECONDS = 30.0
CONNECT_SECONDS = 10.0
MARGIN_SECONDS = 2.0
"""After which Playwright gives up too."""
STOP_SECONDS = 5.0


class NoAnswer(SandboxUnavailable):
    """The browser was reached, and did not let itself be connected to in time: one of its tabs hangs."""


class Driver:
    """Starts Playwright when it is needed, starts it anew when it has died, and ends it when nothing is connected."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._lock = asyncio.Lock()
        self._browsers: set[Browser] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def connect(self, address: str, token: str) -> Browser:
        """Connect to the browser whose WebSocket is at `address`.

        Raises:
            NoAnswer: see there.
            SandboxUnavailable: it cannot be reached, or there is no driver.
        """
        # Whoever gives up waiting must not leave a connection behind that is made a moment later.
        made = asyncio.ensure_future(self._connect_anyhow(address, token))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                browser = await asyncio.shield(made)
        except TimeoutError:
            self._abandon(made)
            raise NoAnswer("The browser does not answer: restart it.") from None
        except asyncio.CancelledError:
            self._abandon(made)
            raise
        except PlaywrightError as error:
            raise SandboxUnavailable("The browser cannot be connected to.") from error
        self._browsers.add(browser)
        browser.on("disconnected", lambda gone: self._browsers.discard(gone))
        return browser

    async def _connect_anyhow(self, address: str, token: str) -> Browser:
        try:
            return await self._connect(address, token)
        except PlaywrightError as error:
            if "closed" not in error.message.lower():
                raise
        await self._forget()  # it was the driver that died
        return await self._connect(address, token)

    async def _connect(self, address: str, token: str) -> Browser:
        playwright = await self._started()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Nothing of Playwright's defaults: it is a person's browser too, and downloads have a place of their own.
        return await playwright.chromium.connect_over_cdp(
            address, headers=headers, no_defaults=True, timeout=(CONNECT_SECONDS + MARGIN_SECONDS) * 1000
        )

    def _abandon(self, made: asyncio.Task[Browser]) -> None:
        async def close() -> None:
            with contextlib.suppress(PlaywrightError, SandboxUnavailable):
                await (await made).close()

        closing = asyncio.ensure_future(close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def rest(self) -> None:
        """End the driver when no browser is connected; the next `connect` starts it again."""
        async with self._lock:
            if not self._browsers:
                await self._stop()

    async def close(self) -> None:
        """End the driver and with it every connection."""
        async with self._lock:
            self._browsers.clear()
            await self._stop()

    async def _started(self) -> Playwright:
        async with self._lock:
            if self._playwright is None:
                try:
                    async with asyncio.timeout(START_SECONDS):
                        self._playwright = await async_playwright().start()
                except (OSError, TimeoutError) as error:
                    raise SandboxUnavailable("The program that drives browsers does not start.") from error
            return self._playwright

    async def _forget(self) -> None:
        async with self._lock:
            await self._stop()

    async def _stop(self) -> None:
        playwright, self._playwright = self._playwright, None
        if playwright is not None:
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await playwright.stop()
