"""One session's browser: one action at a time, each returning a snapshot of the page afterwards."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.external.browser import Target
from app.domain.external.sandbox import Sandbox
from app.domain.models.browser import PageView, Point, ScriptResult
from app.infrastructure.browser import actions, cdp
from app.infrastructure.browser.connection import Connection
from app.infrastructure.browser.console import console_lines, run_script
from app.infrastructure.browser.driver import PlaywrightDriver
from app.infrastructure.browser.model_input import WindowAction, candidate_urls, parse_keys, shown_url, window_action
from app.infrastructure.browser.scrolling import scroll
from app.infrastructure.browser.snapshot import take_snapshot
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.tabs import PREVIOUS_IN_FRONT

DOWNLOAD_SECONDS = 3.0
"""Maximum time in seconds for which an action waits for a download that it started."""
DOWNLOAD_START_SECONDS = 2.0
"""Maximum time in seconds to wait until a download starts that Chromium announced."""
ERROR_PAGE_SECONDS = 1.0
"""Maximum time in seconds to wait until Chromium has loaded its own error page."""
BROWSER_RESTARTED = "The browser was restarted: its tabs and what was typed into them are gone."
RECONNECTED = "The connection to the browser broke and was restored: earlier element numbers are no longer valid."
BROWSER_ENDED = "The browser ended during this action. It is restarting: use browser_view, then try again."

Action = Callable[[Connection, Tab], Awaitable[None]]


class SessionBrowser:
    """Implements the port `Browser`. Connects on first use, and again when the browser or the sandbox is a new one."""

    def __init__(self, driver: PlaywrightDriver, sandbox: Sandbox) -> None:
        self._driver = driver
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        self._cleanup: asyncio.Task[None] | None = None
        self.sandbox = sandbox
        """Sandbox whose browser is used from the next action on."""
        self.last_used = asyncio.get_running_loop().time()
        """Time of the event loop's clock at which the last action ended."""

    @property
    def is_busy(self) -> bool:
        """Whether an action is in progress."""
        return self._lock.locked()

    async def view(self) -> PageView:
        """Implement `Browser.view`."""
        async with self._exclusive_connection() as connection:
            tab = await connection.tabs.settle(await connection.tabs.front())
            return await _snapshot(connection, tab, whole=True)

    async def navigate(self, url: str) -> PageView:
        """Implement `Browser.navigate`."""
        async with self._exclusive_connection() as connection:
            tabs, urls = connection.tabs, candidate_urls(url, connection.home)
            tab = await tabs.front()
            if tab.redirects_endlessly:
                tab = await tabs.replace(tab)
            await connection.downloads.prepare()
            await tab.logins.cancel_all()
            try:
                tab, is_download = await actions.open_url(connection, tab, urls)
            except asyncio.CancelledError:
                self._clean_up(tab.channel.try_send("Page.stopLoading"))
                raise
            except BrowserFailure:
                # Chromium is still loading its own error page, which would interfere with the next action.
                await tab.load.wait_until(lambda: not tab.load.is_loading, seconds=ERROR_PAGE_SECONDS)
                raise
            else:
                if is_download:
                    await connection.downloads.wait_for_start(seconds=DOWNLOAD_START_SECONDS)
                return await _snapshot(connection, await tabs.settle(tab), whole=True)
            finally:
                self._clean_up(tab.logins.stop())

    async def restart(self, url: str) -> PageView:
        """Implement `Browser.restart`."""
        async with self._lock:
            sandbox = self.sandbox
            candidate_urls(url, sandbox.browser.home)  # raises before the restart if it is not a URL
            await self._disconnect()
            await sandbox.restart_browser()
        return await self.navigate(url)

    async def click(self, target: Target) -> PageView:
        """Implement `Browser.click`."""
        return await self._act(lambda _, tab: actions.click(tab, target))

    async def input(self, target: Target | None, text: str, *, press_enter: bool) -> PageView:
        """Implement `Browser.input`."""

        async def action(connection: Connection, tab: Tab) -> None:
            if (field := await actions.file_field(tab, target)) is not None:
                await actions.upload(tab, field, text, connection.sandbox)
                return
            await actions.fill(tab, target, text)
            if press_enter:
                await actions.press(tab, "Enter")

        return await self._act(action)

    async def move_mouse(self, point: Point) -> PageView:
        """Implement `Browser.move_mouse`."""
        return await self._act(lambda _, tab: actions.move_mouse(tab, point))

    async def press_key(self, key: str) -> PageView:
        """Implement `Browser.press_key`, including the keys of the browser's window (back, close the tab, …)."""
        keys = parse_keys(key)
        action = window_action(keys)
        if action is None:
            return await self._act(lambda _, tab: actions.press(tab, keys))
        return await self._act(lambda connection, tab: _act_in_window(connection, tab, action))

    async def select_option(self, index: int, option: int) -> PageView:
        """Implement `Browser.select_option`."""
        return await self._act(lambda _, tab: actions.choose_option(tab, index, option))

    async def scroll(self, *, down: bool, to_end: bool) -> PageView:
        """Implement `Browser.scroll`."""
        return await self._act(lambda _, tab: scroll(tab, down=down, to_end=to_end), scrolled=True)

    async def execute(self, javascript: str) -> ScriptResult:
        """Implement `Browser.execute`."""
        value = ""

        async def action(_: Connection, tab: Tab) -> None:
            nonlocal value
            try:
                value = await run_script(tab, javascript)
            except asyncio.CancelledError:
                self._clean_up(tab.stop_script())
                raise

        page = await self._act(action)
        return ScriptResult(value=value, page=page)

    async def console(self, max_lines: int | None) -> Sequence[str]:
        """Implement `Browser.console`."""
        async with self._exclusive_connection() as connection:
            return await console_lines(await connection.tabs.front(), max_lines)

    async def release(self) -> None:
        """Close the connection. The browser continues to run; the next use connects again without a note."""
        async with self._lock:
            await self._disconnect()

    async def _act(self, action: Action, *, scrolled: bool = False) -> PageView:
        """Run `action` on the tab in front, wait until the page has reacted, and return a snapshot."""
        async with self._exclusive_connection() as connection:
            tabs = connection.tabs
            tab = await tabs.front()
            await connection.downloads.prepare()
            await tab.load.count_requests(keep=scrolled)
            await tab.logins.cancel_all()
            await tab.take_file_dialogs()
            front = tab
            try:
                await action(connection, tab)
                front = await tabs.settle(tab)
            except cdp.PageUnresponsive:
                await tab.free()
                front = tab
            except cdp.TabGone:
                if tabs.is_crashed(tab) or not await connection.is_alive():
                    raise
                front = await tabs.settle(await tabs.front())  # the action closed the tab
            finally:
                self._clean_up(tab.load.stop_counting())
                self._clean_up(tab.logins.stop())
                for each in {tab, front}:
                    each.release_file_dialogs()
            if tab.file_chooser is not None:
                tab.note("The page asks for a file: give its path with browser_input.")
            try:
                return await _snapshot(connection, front, whole=False, scrolled=scrolled)
            except BrowserFailure as error:
                if isinstance(error, cdp.TabGone):
                    raise
                raise BrowserFailure(f"The action was carried out. {error}", status=error.status) from error

    @asynccontextmanager
    async def _exclusive_connection(self) -> AsyncGenerator[Connection]:
        """Hold the lock for one action and provide a connection that was alive at its start."""
        async with self._lock:
            if self._cleanup is not None:
                await asyncio.wait({self._cleanup})
            connection = await self._connect()
            try:
                yield connection
            except BrowserFailure as error:
                if isinstance(error, cdp.TabGone) and not await connection.is_alive():
                    raise SandboxUnavailable(BROWSER_ENDED) from error
                if not (notes := connection.tabs.take_notes()):
                    raise
                raise BrowserFailure(" ".join((str(error), *notes)), status=error.status) from error
            finally:
                self.last_used = asyncio.get_running_loop().time()

    async def _connect(self) -> Connection:
        sandbox = self.sandbox
        previous = self._connection
        if previous is not None and await previous.serves(sandbox):
            return previous
        await self._disconnect()
        connection = self._connection = await self._connect_to(sandbox)
        if previous is not None:
            is_same_browser = connection.address == previous.address and not sandbox.browser.shared
            earlier = [note for note in previous.tabs.take_notes() if note != PREVIOUS_IN_FRONT]
            for note in (*earlier, RECONNECTED if is_same_browser else BROWSER_RESTARTED):
                connection.tabs.note(note)
        return connection

    async def _connect_to(self, sandbox: Sandbox) -> Connection:
        instance = sandbox.instance_id
        try:
            return await Connection.connect(self._driver, sandbox)
        except SandboxUnavailable:
            # The sandbox may have ended just now. Any call notices that, and continues with its successor.
            await sandbox.status()
            if sandbox.instance_id == instance:
                raise
        return await Connection.connect(self._driver, sandbox)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _clean_up(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` in the background. The next action waits for it."""
        previous = self._cleanup

        async def run() -> None:
            if previous is not None:
                await asyncio.wait({previous})
            await work

        self._cleanup = asyncio.create_task(run())


async def _snapshot(connection: Connection, tab: Tab, *, whole: bool, scrolled: bool = False) -> PageView:
    await connection.downloads.wait_for_end(seconds=DOWNLOAD_SECONDS)
    view = await take_snapshot(connection.snapshots, connection.tabs, tab, whole=whole, scrolled=scrolled)
    await connection.downloads.wait_for_end(seconds=DOWNLOAD_SECONDS)  # of one that started after the action
    return replace(view, url=shown_url(view.url, connection.home), notes=connection.tabs.take_notes())


async def _act_in_window(connection: Connection, tab: Tab, action: WindowAction) -> None:
    match action:
        case "back" | "forward":
            await actions.go_through_history(tab, -1 if action == "back" else 1)
        case "reload":
            await actions.reload(tab)
        case "close":
            await connection.tabs.close_front()
        case "new":
            await connection.tabs.open_blank()
        case "next" | "previous":
            connection.tabs.rotate(backward=action == "previous")
