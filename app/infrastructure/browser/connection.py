"""A connection to the browser of one sandbox instance, and the downloads of that browser."""

import asyncio
import contextlib
import posixpath
from dataclasses import dataclass

from playwright.async_api import Browser, BrowserContext
from playwright.async_api import Error as PlaywrightError

from app.domain.errors import BrowserFailure, SandboxFailure, SandboxUnavailable
from app.domain.external.sandbox import Sandbox
from app.infrastructure.browser import cdp
from app.infrastructure.browser.driver import BrowserUnresponsive, PlaywrightDriver, close_all_tabs, find_browser
from app.infrastructure.browser.model_input import shown_path
from app.infrastructure.browser.prompts import deny_permissions
from app.infrastructure.browser.snapshot import SnapshotHistory
from app.infrastructure.browser.tabs import Tabs

CLOSE_SECONDS = 3.0
"""Time limit in seconds for closing a connection."""
DOWNLOAD_FOLDER = "Downloads"
"""Name of the folder for downloads in the workspace."""
_UNITS = ("bytes", "KB", "MB", "GB")
_UNIT_FACTOR = 1000


@dataclass(slots=True)
class _Download:
    path: str
    received: float = 0
    total: float = 0
    is_noted: bool = False
    """Whether the model knows that it is in progress."""


class Downloads:
    """The downloads of one browser. None overwrites another, and each is noted with its path and size.

    Chromium overwrites a file of the same name, and needs the folder before it knows the name. So the downloads of each
    action have a folder of their own: `~/Downloads` while it is empty, then `~/Downloads/2`, and so on.
    """

    def __init__(self, channel: cdp.Channel, home: str, tabs: Tabs, context_id: str) -> None:
        """`context_id` is empty for the browser's default context; Chromium reports the downloads of every context."""
        self._channel = channel
        self._home = home
        self._root = posixpath.join(home, DOWNLOAD_FOLDER)
        self._tabs = tabs
        self._context_id = context_id
        self._used_folders = 0
        self._folder_has_downloads = False
        self._active: dict[str, _Download] = {}
        self._changes = cdp.ChangeSignal()
        channel.on("Browser.downloadWillBegin", self._on_start)
        channel.on("Browser.downloadProgress", self._on_progress)

    async def start(self, sandbox: Sandbox) -> None:
        """Take over the browser's downloads."""
        self._used_folders = await _count_used_folders(sandbox, self._root)
        await self._set_folder()

    async def prepare(self) -> None:
        """Choose an empty folder for the downloads of the next action."""
        if self._folder_has_downloads:
            self._folder_has_downloads = False
            self._used_folders += 1
        # Also if it is the same: the sandbox then restores a folder that was removed.
        await self._set_folder()

    async def wait_for_start(self, *, seconds: float) -> None:
        """Wait until a download that is about to start has started."""
        await self._changes.wait_until(lambda: self._folder_has_downloads, seconds=seconds)

    async def wait_for_end(self, *, seconds: float) -> None:
        """Wait until the downloads in progress have ended; note those that take longer."""
        if await self._changes.wait_until(lambda: not self._unnoted(), seconds=seconds):
            return
        for each in self._unnoted():
            each.is_noted = True
            of_total = f" of {_size(each.total)}" if each.total > each.received else ""
            path = shown_path(each.path, self._home)
            self._tabs.note(f"{path} is being downloaded: {_size(each.received)}{of_total} so far.")

    def _unnoted(self) -> list[_Download]:
        return [each for each in self._active.values() if not each.is_noted]

    @property
    def _folder(self) -> str:
        return posixpath.join(self._root, str(self._used_folders + 1)) if self._used_folders else self._root

    async def _set_folder(self) -> None:
        behavior: dict[str, object] = {"behavior": "allow", "downloadPath": self._folder, "eventsEnabled": True}
        if self._context_id:
            behavior["browserContextId"] = self._context_id
        await self._channel.send("Browser.setDownloadBehavior", behavior)

    def _on_start(self, event: cdp.Json) -> None:
        if self._context_id and not self._tabs.has_target(cdp.text(event, "frameId")):
            return
        name = posixpath.basename(cdp.text(event, "suggestedFilename")) or "download"
        self._active[cdp.text(event, "guid")] = _Download(posixpath.join(self._folder, name))
        self._folder_has_downloads = True
        self._changes.notify()

    def _on_progress(self, event: cdp.Json) -> None:
        state, path, received = (
            cdp.text(event, "state"),
            cdp.text(event, "filePath"),
            cdp.number(event, "receivedBytes"),
        )
        download = self._active.get(cdp.text(event, "guid"))
        if download is None:
            # The start event of a download in a frame names no tab; its folder shows whose it is.
            if self._context_id and state == "completed" and path.startswith(self._root + "/"):
                self._folder_has_downloads = True
                self._note_completed(path, received)
            return
        download.received, download.total = received, cdp.number(event, "totalBytes")
        if state == "inProgress":
            return
        del self._active[cdp.text(event, "guid")]
        if state == "completed":
            self._note_completed(path or download.path, received)
        else:
            name = posixpath.basename(download.path)
            self._tabs.note(f"The download of {name!r} was cut off after {_size(received)}.")
        self._changes.notify()

    def _note_completed(self, path: str, size: float) -> None:
        self._tabs.note(f"Downloaded {shown_path(path, self._home)} ({_size(size)}).")


class Connection:
    """A connected browser with its tabs, its downloads and its snapshots. Created by `connect`; close it."""

    def __init__(
        self, sandbox: Sandbox, browser: Browser, context: BrowserContext, channel: cdp.Channel, *, address: str
    ) -> None:
        self.sandbox = sandbox
        self.address = address
        """WebSocket URL of the browser; a restarted browser has another one."""
        self.home = sandbox.browser.home
        self.tabs = Tabs(context)
        self.snapshots = SnapshotHistory()
        self._instance_id = sandbox.instance_id
        self._browser = browser
        self._channel = channel
        browser.on("disconnected", lambda _: self._on_disconnected())

    @classmethod
    async def connect(cls, driver: PlaywrightDriver, sandbox: Sandbox) -> "Connection":
        """Connect to the sandbox's browser; wait while it starts.

        Raises:
            BrowserFailure: The sandbox has no browser.
            SandboxUnavailable: The browser does not respond.
        """
        endpoint = sandbox.browser
        address = await find_browser(endpoint)
        closed_tabs = False
        try:
            browser = await driver.connect(address, endpoint.token)
        except BrowserUnresponsive:
            if endpoint.shared:
                raise  # the tabs of other sessions must stay
            closed_tabs = True
            await close_all_tabs(endpoint)
            browser = await driver.connect(address, endpoint.token)
        try:
            # A session that shares a browser with others has a browser context of its own.
            context = await browser.new_context(no_viewport=True) if endpoint.shared else browser.contexts[0]
            channel = cdp.Channel(await browser.new_browser_cdp_session(), cdp.TargetLifetime())
            connection = cls(sandbox, browser, context, channel, address=address)
            await connection._start()
            if closed_tabs:
                connection.tabs.note("The browser's tabs no longer responded and were closed.")
        except (PlaywrightError, IndexError, cdp.PageUnresponsive, cdp.TabGone) as error:
            await _close(browser)
            raise SandboxUnavailable("The sandbox's browser broke off the connection.") from error
        except BaseException:
            await _close(browser)
            raise
        return connection

    async def serves(self, sandbox: Sandbox) -> bool:
        """Return whether the connection is to this instance of the sandbox, and its browser responds."""
        return sandbox.instance_id == self._instance_id and await self.is_alive()

    async def is_alive(self) -> bool:
        """Ask the browser whether it is alive: when it ends, its tabs are reported gone before the connection is."""
        try:
            await self._channel.send("Browser.getVersion")
        except BrowserFailure:
            return False
        return True

    async def close(self) -> None:
        """Close the connection. The browser continues to run."""
        await _close(self._browser)

    async def _start(self) -> None:
        context_id = ""
        if self.sandbox.browser.shared:
            # Playwright does not expose Chromium's id of a context; a tab in it does.
            target = await (await self.tabs.front()).channel.send("Target.getTargetInfo")
            context_id = cdp.text(target, "targetInfo", "browserContextId")
        await deny_permissions(self._channel, context_id)
        self.downloads = Downloads(self._channel, self.home, self.tabs, context_id)
        await self.downloads.start(self.sandbox)
        await self.tabs.start(self._channel, context_id)

    def _on_disconnected(self) -> None:
        self._channel.lifetime.end("The browser is gone.")
        self.tabs.end("The browser is gone.")


async def _close(browser: Browser) -> None:
    with contextlib.suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await browser.close()


async def _count_used_folders(sandbox: Sandbox, root: str) -> int:
    """Return the highest number of a download folder; 1 if `root` has only other files; 0 if it is empty."""
    try:
        found = await sandbox.file_find(root, "*")
    except (SandboxFailure, SandboxUnavailable):
        return 0  # the folder does not exist yet
    names = {path.removeprefix(found.path).strip("/").partition("/")[0] for path in found.files}
    return max((int(each) for each in names if each.isdigit()), default=1 if names else 0)


def _size(count: float) -> str:
    exponent = 0
    while count >= _UNIT_FACTOR and exponent < len(_UNITS) - 1:
        count /= _UNIT_FACTOR
        exponent += 1
    return f"{count:.{min(exponent, 1)}f} {_UNITS[exponent]}"
