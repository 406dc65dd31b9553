"""One session's browser: one action at a time, each answered with the page as it is then."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.external.browser import Target
from app.domain.external.sandbox import Sandbox
from app.domain.models.browser import PageView, Point, ScriptResult
from app.infrastructure.browser import acting, console, navigating, uploads
from app.infrastructure.browser.addresses import addresses, shown_url
from app.infrastructure.browser.connection import Connection
from app.infrastructure.browser.driver import Driver
from app.infrastructure.browser.failures import Hung, TabGone
from app.infrastructure.browser.keys import BrowserKey, parse_keys, window_key
from app.infrastructure.browser.settle import settle
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.viewing import free, view_page

DOWNLOAD_SECONDS = 3.0
"""That an action waits for a download that it set off."""
BEGIN_SECONDS = 2.0
ERROR_PAGE_SECONDS = 1.0
STARTED_ANEW = "The browser was started anew: its tabs and what was typed into them are gone."
CONNECTED_ANEW = "The connection to the browser broke and was made anew: numbers of elements from before do not hold."
LOST = "The browser ended in the middle of it. It starts anew: use browser_view, then try again."

Action = Callable[[Connection, Tab], Awaitable[None]]


class SessionBrowser:
    """The port `Browser`. Connects when it is used, and again when its browser or its sandbox is another."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        self._sandbox: Sandbox | None = None
        self._tidying: asyncio.Task[None] | None = None
        self.last_used = asyncio.get_running_loop().time()

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._lock.locked()

    def use(self, sandbox: Sandbox) -> None:
        """From the next call on, drive the browser of `sandbox`."""
        self._sandbox = sandbox

    async def view(self) -> PageView:
        """See `Browser.view`."""
        async with self._turn() as connection:
            tab = await settle(connection.tabs, await connection.tabs.front())
            return await _view(connection, tab, whole=True)

    async def navigate(self, url: str) -> PageView:
        """See `Browser.navigate`."""
        async with self._turn() as connection:
            return await self._go(connection, url)

    async def restart(self, url: str) -> PageView:
        """See `Browser.restart`."""
        async with self._lock:
            sandbox = self._given()
            addresses(url, sandbox.browser.home)  # what is no URL is no reason to lose all tabs
            await self._let_go()
            await sandbox.restart_browser()
        return await self.navigate(url)

    async def click(self, target: Target) -> PageView:
        """See `Browser.click`."""
        return await self._act(lambda _, tab: acting.click(tab, target))

    async def input(self, target: Target | None, text: str, *, press_enter: bool) -> PageView:
        """See `Browser.input`."""

        async def do(connection: Connection, tab: Tab) -> None:
            index = target if isinstance(target, int) else None
            if not isinstance(target, Point) and await uploads.is_for_files(tab, index):
                await uploads.upload(tab, index, text, connection.sandbox)
                return
            await acting.fill(tab, target, text)
            if press_enter:
                await acting.press(tab, "Enter")

        return await self._act(do)

    async def move_mouse(self, point: Point) -> PageView:
        """See `Browser.move_mouse`."""
        return await self._act(lambda _, tab: acting.move_mouse(tab, point))

    async def press_key(self, key: str) -> PageView:
        """See `Browser.press_key`; what a key does in a browser's window (back, close the tab, …) is done as well."""
        keys = parse_keys(key)
        meaning = window_key(keys)
        if meaning is None:
            return await self._act(lambda _, tab: acting.press(tab, keys))
        return await self._act(lambda connection, tab: _in_window(connection, tab, meaning))

    async def select_option(self, index: int, option: int) -> PageView:
        """See `Browser.select_option`."""
        return await self._act(lambda _, tab: acting.choose(tab, index, option))

    async def scroll(self, *, down: bool, to_end: bool) -> PageView:
        """See `Browser.scroll`."""

        async def do(connection: Connection, tab: Tab) -> None:
            if not await acting.scroll(tab, down=down, to_end=to_end):
                connection.tabs.note(f"There is nothing further {'down' if down else 'up'}.")

        return await self._act(do, scrolled=True)

    async def execute(self, javascript: str) -> ScriptResult:
        """See `Browser.execute`."""
        value = ""

        async def do(_: Connection, tab: Tab) -> None:
            nonlocal value
            try:
                value = await console.run_script(tab, javascript)
            except asyncio.CancelledError:
                self._tidy(console.end_script(tab))
                raise

        page = await self._act(do)
        return ScriptResult(value=value, page=page)

    async def console(self, max_lines: int | None) -> Sequence[str]:
        """See `Browser.console`."""
        async with self._turn() as connection:
            return await console.console_lines(await connection.tabs.front(), max_lines)

    async def release(self) -> None:
        """Let go of the browser; it goes on. The next use connects again, without a word about it."""
        async with self._lock:
            await self._let_go()

    async def _go(self, connection: Connection, url: str) -> PageView:
        tabs, urls = connection.tabs, addresses(url, connection.home)
        tab = await tabs.front()
        if tab.is_restless:
            tab = await tabs.replace(tab)
        await connection.downloads.prepare()
        try:
            tab, is_download = await navigating.go(tabs, tab, urls, connection.home)
        except asyncio.CancelledError:
            self._tidy(tab.channel.try_send("Page.stopLoading"))
            raise
        except BrowserFailure:
            # Chromium is still putting up its own page about it; what is done next must not meet that half way.
            await tab.traffic.until(lambda: not tab.traffic.loading, seconds=ERROR_PAGE_SECONDS)
            raise
        if is_download:
            await connection.downloads.begun(seconds=BEGIN_SECONDS)
        return await _view(connection, await settle(tabs, tab), whole=True)

    async def _act(self, action: Action, *, scrolled: bool = False) -> PageView:
        async with self._turn() as connection:
            tabs = connection.tabs
            tab = await tabs.front()
            await connection.downloads.prepare()
            await tab.traffic.count()
            try:
                await action(connection, tab)
                front = await settle(tabs, tab)
            except Hung:
                await free(tabs, tab)
                front = tab
            except TabGone:
                if tabs.is_crashed(tab) or not await connection.answers():
                    raise
                front = await settle(tabs, await tabs.front())  # it closed itself, as it was asked to
            finally:
                self._tidy(tab.traffic.rest())
            if tab.chooser is not None:
                tabs.note("The page asks for a file: give its path with browser_input.")
            return await _view(connection, front, whole=False, scrolled=scrolled)

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[Connection]:
        """One action at a time, on a connection that is alive when it begins."""
        async with self._lock:
            if self._tidying is not None:
                await asyncio.wait({self._tidying})
            connection = await self._connected()
            try:
                yield connection
            except BrowserFailure as error:
                if isinstance(error, TabGone) and not await connection.answers():
                    raise SandboxUnavailable(LOST) from error
                raise
            finally:
                self.last_used = asyncio.get_running_loop().time()

    async def _connected(self) -> Connection:
        sandbox = self._given()
        before = self._connection
        if before is not None and await before.serves(sandbox):
            return before
        await self._let_go()
        connection = self._connection = await Connection.connect(self._driver, sandbox)
        if before is not None:
            same = connection.address == before.address and not sandbox.browser.shared
            connection.tabs.note(CONNECTED_ANEW if same else STARTED_ANEW)
        return connection

    async def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _given(self) -> Sandbox:
        if self._sandbox is None:
            raise SandboxUnavailable("The session has no sandbox.")
        return self._sandbox

    def _tidy(self, work: Coroutine[object, object, None]) -> None:
        """Do what need not be waited for; the next action begins after it."""
        before = self._tidying

        async def run() -> None:
            if before is not None:
                await asyncio.wait({before})
            await work

        self._tidying = asyncio.ensure_future(run())


async def _view(connection: Connection, tab: Tab, *, whole: bool, scrolled: bool = False) -> PageView:
    if connection.downloads.active:
        await connection.downloads.settle(seconds=DOWNLOAD_SECONDS)
    view = await view_page(connection.tabs, tab, whole=whole, scrolled=scrolled)
    if connection.downloads.active:  # one that began a moment later than an action takes
        await connection.downloads.settle(seconds=DOWNLOAD_SECONDS)
    return replace(view, url=shown_url(view.url, connection.home), notes=connection.tabs.drain())


async def _in_window(connection: Connection, tab: Tab, key: BrowserKey) -> None:
    tabs = connection.tabs
    match key:
        case "back" | "forward":
            await navigating.back_or_forward(tab, -1 if key == "back" else 1)
        case "reload":
            await navigating.reload(tab)
        case "close":
            await tabs.close_front()
        case "new":
            await tabs.open()
        case "next" | "previous":
            tabs.turn(back=key == "previous")
