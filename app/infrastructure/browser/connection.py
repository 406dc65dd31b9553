"""One connection to one life of a sandbox's browser."""

import asyncio
import contextlib

from playwright.async_api import Browser, BrowserContext
from playwright.async_api import Error as PlaywrightError

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.external.sandbox import Sandbox
from app.infrastructure.browser.channel import Channel, Ending, text
from app.infrastructure.browser.downloads import Downloads
from app.infrastructure.browser.driver import Driver, NoAnswer
from app.infrastructure.browser.endpoint import close_tabs, find_browser
from app.infrastructure.browser.failures import Hung, TabGone
from app.infrastructure.browser.tabs import Tabs

CLOSE_SECONDS = 3.0
ANSWER_SECONDS = 5.0


class Connection:
    """A connected browser with its tabs and downloads. Made by `connect`; close it."""

    def __init__(
        self, sandbox: Sandbox, browser: Browser, context: BrowserContext, wire: Channel, *, address: str
    ) -> None:
        self.sandbox = sandbox
        self.address = address
        """Names this life of the browser."""
        self.home = sandbox.browser.home
        self.tabs = Tabs(context)
        self._computer = sandbox.instance_id
        self._browser = browser
        self._wire = wire
        browser.on("disconnected", lambda _: self._lost())

    @classmethod
    async def connect(cls, driver: Driver, sandbox: Sandbox) -> "Connection":
        """Connect to the sandbox's browser, waiting while it starts.

        Raises:
            BrowserFailure: the sandbox has none.
            SandboxUnavailable: it does not answer.
        """
        endpoint = sandbox.browser
        address = await find_browser(endpoint)
        hung = False
        try:
            browser = await driver.connect(address, endpoint.token)
        except NoAnswer:
            if endpoint.shared:
                raise  # the tabs are not all ours
            hung = True
            await close_tabs(endpoint)
            browser = await driver.connect(address, endpoint.token)
        try:
            # Whoever shares a browser with other sessions keeps to a context of its own.
            context = await browser.new_context(no_viewport=True) if endpoint.shared else browser.contexts[0]
            wire = Channel(await browser.new_browser_cdp_session(), Ending())
            connection = cls(sandbox, browser, context, wire, address=address)
            await connection._start(own_context=endpoint.shared)
            if hung:
                connection.tabs.note("The browser's tabs did not respond any more, and were closed.")
        except (PlaywrightError, IndexError, Hung, TabGone) as error:
            await _close(browser)
            raise SandboxUnavailable("The sandbox's browser broke off the connection.") from error
        except BaseException:
            await _close(browser)
            raise
        return connection

    async def serves(self, sandbox: Sandbox) -> bool:
        """Whether the browser is there, and is that of this life of the sandbox."""
        return sandbox.instance_id == self._computer and await self.answers()

    @property
    def alive(self) -> bool:
        """Whether the browser is there, as far as is known."""
        return self._browser.is_connected()

    async def answers(self) -> bool:
        """Whether the browser is there. It is asked: of its end its tabs are told first, and some time may go by."""
        if not self.alive:
            return False
        try:
            await self._wire.send("Browser.getVersion", seconds=ANSWER_SECONDS)
        except BrowserFailure:
            return False
        return True

    async def close(self) -> None:
        """Let go of the browser; it goes on."""
        await _close(self._browser)

    async def _start(self, *, own_context: bool) -> None:
        context_id = await self._context_id() if own_context else ""
        tabs = self.tabs
        self.downloads = Downloads(self._wire, self.home, context_id, note=tabs.note, is_ours=tabs.has_target)
        await self.downloads.start(self.sandbox)
        await self.tabs.start(self._wire, context_id)

    async def _context_id(self) -> str:
        """Chromium's name for our context, which Playwright does not tell: the one of a tab that we opened in it."""
        tab = await self.tabs.front()
        info = await tab.channel.send("Target.getTargetInfo")
        return text(info, "targetInfo", "browserContextId")

    def _lost(self) -> None:
        self._wire.ending.end("The browser is gone.")
        self.tabs.end("The browser is gone.")


async def _close(browser: Browser) -> None:
    with contextlib.suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await browser.close()
