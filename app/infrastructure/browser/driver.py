"""The one Playwright driver of this process: a Node program of about 100 MB, started by the first use of a browser.

All that pages log and do passes through it, and a page that floods it makes it grow for good (by 20 MB a second). So it
may not have all of the machine's memory, and one that has grown heavy is ended when nobody uses it.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Generator
from pathlib import Path

from playwright.async_api import Browser, Playwright, async_playwright
from playwright.async_api import Error as PlaywrightError

from app.domain.errors import SandboxUnavailable

log = logging.getLogger(__name__)

START_SECONDS = 30.0
CONNECT_SECONDS = 10.0
MARGIN_SECONDS = 2.0
"""After which Playwright gives up too."""
STOP_SECONDS = 5.0
HEAP_MB = 1024
"""Of its own memory that the driver may use; at more it ends, and the next call starts another."""
HEAVY_MB = 500


class NoAnswer(SandboxUnavailable):
    """The browser was reached, and did not let itself be connected to in time: one of its tabs hangs."""


class Driver:
    """Starts Playwright when it is needed, starts it anew when it has died, and ends it when nothing is connected."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._lock = asyncio.Lock()
        self._pid = 0
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

    @property
    def is_heavy(self) -> bool:
        """Whether the driver has grown so much that it is better ended."""
        try:
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) if self._pid else 0
        except (OSError, IndexError, ValueError):
            return False  # it has ended, or this system does not tell
        return pages * os.sysconf("SC_PAGE_SIZE") > HEAVY_MB << 20

    async def close(self) -> None:
        """End the driver and with it every connection."""
        async with self._lock:
            self._browsers.clear()
            await self._stop()

    async def _started(self) -> Playwright:
        async with self._lock:
            if self._playwright is None:
                try:
                    before = _node_programs()
                    with _bounded_heap():
                        async with asyncio.timeout(START_SECONDS):
                            self._playwright = await async_playwright().start()
                    self._pid = max(_node_programs() - before, default=0)
                except (OSError, TimeoutError) as error:
                    raise SandboxUnavailable("The program that drives browsers does not start.") from error
            return self._playwright

    async def _forget(self) -> None:
        async with self._lock:
            await self._stop()

    async def _stop(self) -> None:
        playwright, self._playwright = self._playwright, None
        self._pid = 0
        if playwright is not None:
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await playwright.stop()


@contextlib.contextmanager
def _bounded_heap() -> Generator[None]:
    """Node reads this when it starts; Playwright gives it our environment and takes nothing in addition."""
    before = os.environ.get("NODE_OPTIONS")
    os.environ["NODE_OPTIONS"] = f"{before or ''} --max-old-space-size={HEAP_MB}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["NODE_OPTIONS"]
        else:
            os.environ["NODE_OPTIONS"] = before


def _node_programs() -> set[int]:
    """The drivers among our child processes."""
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in listing.read_text().split() if _is_driver(pid)}
    return found


def _is_driver(pid: str) -> bool:
    try:
        return b"playwright" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
