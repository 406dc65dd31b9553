"""One tab: its CDP session, its frames, what it loads, and its screenshots."""

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable

from playwright.async_api import Page

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp
from app.infrastructure.browser.frames import FrameWorlds
from app.infrastructure.browser.prompts import LoginPrompts

log = logging.getLogger(__name__)

ATTACH_SECONDS = 10.0
"""Time limit in seconds for opening a CDP session with a tab."""

QUIET_MS = 60
"""Time in milliseconds without a change after which a document counts as settled."""
MAX_UNQUIET_MS = 400
"""Maximum time in milliseconds to wait for a document that never stops changing."""
NETWORK_SECONDS = 1.5
"""Maximum time in seconds to wait for requests that an action started."""
COMMIT_SECONDS = 15.0
"""Maximum time in seconds to wait for a server's first response to a navigation."""
TEXT_SECONDS = 6.0
"""Maximum time in seconds to wait for the text of a document after that."""
RESOURCES_SECONDS = 3.0
"""Maximum time in seconds to wait for images, scripts and frames after that."""
MAX_SCRIPT_REDIRECTS = 5
"""Maximum number of redirects by scripts to follow."""
SETTLE_SECONDS = 25.0
"""Time in seconds after which no further redirect is followed."""

FILE_DIALOG_SECONDS = 6.0
"""Time in seconds after an action within which a page can open a file dialog: Chromium allows it for 5 s."""

JPEG_QUALITY = 50
"""Quality of screenshots, from 0 to 100."""
MAX_SCREENSHOT_PIXELS = 1024
"""Maximum width, and maximum height, of a screenshot in pixels."""
SCREENCAST_SECONDS = 1.0
"""Time limit in seconds for the first frame of a screencast."""
STILL_SECONDS = 2.0
"""Time limit in seconds for a still image."""

_UNCOUNTED_REQUESTS = frozenset(
    {"WebSocket", "EventSource", "Ping", "Media", "CSPViolationReport", "Preflight", "Prefetch"}
)
"""Types of requests that do not tell whether a page is ready."""
_PAGE_SCHEMES = ("http:", "https:", "file:", "data:", "blob:", "about:")
"""Schemes of documents; `page.js` prevents a navigation to another one."""
_SAME_DOCUMENT = frozenset({"sameDocument", "historySameDocument"})

FileField = tuple[cdp.Channel, cdp.Json]
"""Channel of a file field's document, and the field as CDP identifies it."""


class PageLoad:
    """Follows what one tab loads: navigations always, requests only between `count_requests` and `stop_counting`."""

    def __init__(self, channel: cdp.Channel, frames: FrameWorlds, note: Callable[[str], None]) -> None:
        self._channel = channel
        self._frames = frames
        self._note = note
        self._requests: set[str] = set()
        self._changes = channel.lifetime.changes
        self._has_text = False
        self.is_navigating = False
        """Whether the tab is on the way to another document."""
        self.is_loading = False
        """Whether the current document, or something in it, is still loading and worth waiting for."""
        self.counts_between_actions = False
        """Whether requests are counted until the next action: the page is scrolled to its end and may load more."""
        self.document_count = 0
        """Number of documents so far."""
        for event, handler in {
            "Page.frameRequestedNavigation": self._on_navigation_requested,
            "Page.frameStartedNavigating": self._on_navigation_started,
            "Page.frameNavigated": self._on_navigated,
            "Page.frameStartedLoading": self._on_loading_started,
            "Page.frameStoppedLoading": self._on_loading_stopped,
            "Page.domContentEventFired": self._on_text_complete,
            "Network.requestWillBeSent": self._on_request,
            "Network.loadingFinished": self._on_response,
            "Network.loadingFailed": self._on_response,
        }.items():
            channel.on(event, handler)
            channel.on(event, lambda _: self._changes.notify())

    @property
    def has_requests(self) -> bool:
        """Return whether a counted request is under way."""
        return bool(self._requests)

    async def count_requests(self, *, keep: bool) -> None:
        """Count requests from now on; with `keep`, also those that were counted since the last action."""
        if not (keep and self.counts_between_actions):
            self._requests.clear()
        self.counts_between_actions = False
        # The browser must not buffer response bodies for this session.
        await self._channel.send("Network.enable", {"maxTotalBufferSize": 0, "maxResourceBufferSize": 0})

    async def stop_counting(self) -> None:
        """Stop counting requests: between actions, the events of a busy page would cost CPU for nothing."""
        if self.counts_between_actions:
            return
        self._requests.clear()
        if not self._channel.lifetime.end_reason:
            await self._channel.try_send("Network.disable")

    async def wait_until(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        """Wait until `condition` is true or the tab is gone. Return False if the time limit passes first."""
        lifetime = self._channel.lifetime
        return await self._changes.wait_until(lambda: condition() or bool(lifetime.end_reason), seconds=seconds)

    async def settle(self) -> None:
        """Wait until the page has reacted to an action, for at most about `SETTLE_SECONDS`."""
        end = time.monotonic() + SETTLE_SECONDS
        for _ in range(MAX_SCRIPT_REDIRECTS):
            await self._wait_for_load()
            documents = self.document_count
            try:
                await self._wait_until_settled()
            except cdp.DocumentGone:
                continue
            except (cdp.TabGone, cdp.PageUnresponsive):
                return  # reading the page reports what is wrong
            if (self.document_count == documents and not self.is_navigating) or time.monotonic() > end:
                return

    async def _wait_for_load(self) -> None:
        if self.is_navigating and not await self.wait_until(lambda: not self.is_navigating, seconds=COMMIT_SECONDS):
            self._note(f"The page wanted to navigate, and its server did not answer within {COMMIT_SECONDS:g} s.")
            await self._channel.try_send("Page.stopLoading")
            self.is_navigating = False  # Chromium does not report the end of a navigation that a script prevented
            return
        documents = self.document_count

        def is_done() -> bool:
            return not self.is_loading or self.document_count != documents

        if not is_done() and await self.wait_until(lambda: self._has_text or is_done(), seconds=TEXT_SECONDS):
            await self.wait_until(is_done, seconds=RESOURCES_SECONDS)
        if not is_done():
            self.is_loading = False  # later actions do not wait for this document again

    async def _wait_until_settled(self) -> None:
        """Wait until neither the document changes nor a counted request is under way, within limits."""
        end = time.monotonic() + NETWORK_SECONDS
        await self.wait_for_quiet()
        while self._requests and not self.is_navigating and (left := end - time.monotonic()) > 0:
            await self.wait_until(lambda: not self._requests or self.is_navigating, seconds=left)
            await self.wait_for_quiet()

    async def wait_for_quiet(self) -> None:
        """Wait until the main document does not change for a moment.

        Raises:
            DocumentGone: The page navigated.
            TabGone: The tab is gone.
            PageUnresponsive: The page does not respond.
        """
        await (await self._frames.main()).call("waitForQuiet", QUIET_MS, MAX_UNQUIET_MS)

    def _on_navigation_requested(self, event: cdp.Json) -> None:
        is_here = cdp.text(event, "frameId") == self._frames.main_id and cdp.text(event, "disposition") == "currentTab"
        if is_here and cdp.text(event, "url").startswith(_PAGE_SCHEMES):
            self.is_navigating = True

    def _on_navigation_started(self, event: cdp.Json) -> None:
        is_same_document = cdp.text(event, "navigationType") in _SAME_DOCUMENT
        if cdp.text(event, "frameId") == self._frames.main_id and not is_same_document:
            self.is_navigating = True

    def _on_navigated(self, event: cdp.Json) -> None:
        if not cdp.text(event, "frame", "parentId"):
            self._frames.main_id = cdp.text(event, "frame", "id")
            self.document_count += 1
            self._has_text = False
            self.is_navigating = False

    def _on_loading_started(self, event: cdp.Json) -> None:
        if cdp.text(event, "frameId") == self._frames.main_id:
            self.is_loading = True

    def _on_loading_stopped(self, event: cdp.Json) -> None:
        if cdp.text(event, "frameId") == self._frames.main_id:
            self.is_loading = False
            self.is_navigating = False

    def _on_text_complete(self, _: cdp.Json) -> None:
        self._has_text = True

    def _on_request(self, event: cdp.Json) -> None:
        is_data = cdp.text(cdp.item(event, "request"), "url").startswith("data:")
        if cdp.text(event, "type") not in _UNCOUNTED_REQUESTS and not is_data:
            self._requests.add(cdp.text(event, "requestId"))

    def _on_response(self, event: cdp.Json) -> None:
        self._requests.discard(cdp.text(event, "requestId"))


class Camera:
    """Takes screenshots of one tab."""

    def __init__(self, channel: cdp.Channel) -> None:
        self._channel = channel
        self._frame: asyncio.Future[str] | None = None
        channel.on("Page.screencastFrame", self._on_frame)

    async def take(self) -> bytes | None:
        """Return the viewport as a JPEG. Return None if none can be taken in time: an action must not fail for it.

        The browser scales the frames of a screencast itself, and the first one costs half as much CPU as a still image.
        A page that draws no frame gets a still image.
        """
        try:
            return base64.b64decode(await self._first_frame() or await self._still()) or None
        except (BrowserFailure, binascii.Error) as error:
            log.info("no screenshot of the page: %s", error)
            return None

    async def _first_frame(self) -> str:
        frame = self._frame = asyncio.get_running_loop().create_future()
        size = {"maxWidth": MAX_SCREENSHOT_PIXELS, "maxHeight": MAX_SCREENSHOT_PIXELS}
        try:
            async with asyncio.timeout(SCREENCAST_SECONDS):
                await self._channel.send("Page.startScreencast", {"format": "jpeg", "quality": JPEG_QUALITY, **size})
                return await frame
        except TimeoutError:
            return ""
        finally:
            self._frame = None
            await self._channel.try_send("Page.stopScreencast")

    async def _still(self) -> str:
        options = {"format": "jpeg", "quality": JPEG_QUALITY, "optimizeForSpeed": True}
        return cdp.text(await self._channel.send("Page.captureScreenshot", options, seconds=STILL_SECONDS), "data")

    def _on_frame(self, event: cdp.Json) -> None:
        if self._frame is not None and not self._frame.done():
            self._frame.set_result(cdp.text(event, "data"))


class Tab:
    """A tab with an open CDP session. Created by `attach`."""

    def __init__(self, page: Page, channel: cdp.Channel, note: Callable[[str], None]) -> None:
        self.page = page
        self.channel = channel
        self.lifetime = channel.lifetime
        self.frames = FrameWorlds(page, channel, self._on_file_chooser)
        self.load = PageLoad(channel, self.frames, note)
        self.logins = LoginPrompts(channel, note)
        self.camera = Camera(channel)
        self.note = note
        """Adds a line to the notes of the next snapshot."""
        self.file_chooser: FileField | None = None
        """File field that the page wants a file for; None if it wants none."""
        self._file_dialogs: asyncio.TimerHandle | asyncio.Task[None] | None = None
        """Hands the file dialogs over to the person at the desktop, or has done it; None while the service has them."""
        self.redirects_endlessly = False
        """Whether the page had to be stopped because it kept redirecting; it may interfere with a navigation."""

    @classmethod
    async def attach(cls, page: Page, lifetime: cdp.TargetLifetime, note: Callable[[str], None]) -> "Tab":
        """Open a CDP session with `page`.

        Raises:
            TabGone: The page was closed.
            PageUnresponsive: The page did not respond in time.
        """
        session = await lifetime.run(page.context.new_cdp_session(page), seconds=ATTACH_SECONDS)
        tab = cls(page, cdp.Channel(session, lifetime), note)
        tab.frames.main_id = await tab.frames.prepare_channel(tab.channel)
        await tab.set_focused(True)
        return tab

    async def set_focused(self, focused: bool) -> None:
        """Make the page behave as if its window had the keyboard, whatever else is on the desktop."""
        await self.channel.try_send("Emulation.setFocusEmulationEnabled", {"enabled": focused})

    async def take_file_dialogs(self) -> None:
        """Let the service answer the page's file dialogs until `release_file_dialogs`."""
        release, self._file_dialogs = self._file_dialogs, None
        if isinstance(release, asyncio.Task):
            await asyncio.wait({release})
            await self.frames.intercept_file_dialogs(True)
        elif release is not None:
            release.cancel()

    def release_file_dialogs(self) -> None:
        """Let the person at the desktop answer the page's file dialogs, once no action can have caused one."""

        def release() -> None:
            if not self.lifetime.end_reason:
                self._file_dialogs = asyncio.create_task(self.frames.intercept_file_dialogs(False))

        if self._file_dialogs is not None:
            self._file_dialogs.cancel()
        self._file_dialogs = asyncio.get_running_loop().call_later(FILE_DIALOG_SECONDS, release)

    async def stop_redirects(self) -> None:
        """Stop a page that keeps redirecting, so that it can be read."""
        self.redirects_endlessly = True
        await self.channel.try_send("Page.stopLoading")
        self.note("The page kept redirecting; it was stopped so that it could be read.")

    async def stop_script(self) -> None:
        """Stop the JavaScript that runs in the page now."""
        await self.channel.try_send("Runtime.terminateExecution")

    async def free(self) -> None:
        """Stop a script of the page that keeps it from responding."""
        await self.stop_script()
        self.note("A script of the page blocked it and was stopped: check what the action changed.")

    def _on_file_chooser(self, channel: cdp.Channel, event: cdp.Json) -> None:
        if node := int(cdp.number(event, "backendNodeId")):
            self.file_chooser = (channel, {"backendNodeId": node})
        else:  # a dialog of the File System Access API in a document that was there before `page.js`
            self.note("The page asked for a file in a way that cannot be answered: reload it, then try again.")
