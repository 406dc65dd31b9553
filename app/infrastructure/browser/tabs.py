"""The tabs of one browser: which one is in front, what opens and closes, and the dialogs of their pages."""

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field

from playwright.async_api import BrowserContext, Dialog, Page
from playwright.async_api import Error as PlaywrightError

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp
from app.infrastructure.browser.tab import Tab

MAX_TABS = 10
"""Maximum number of tabs; the oldest is closed when there are more."""
MAX_NOTES = 12
"""Maximum number of notes that one snapshot reports: half of them the first ones, half of them the last ones."""
MAX_KEPT_NOTES = 200
"""Maximum number of notes to keep until they are reported."""
MAX_URL = 200
"""Maximum length of a URL in a note."""
OPEN_SECONDS = 10.0
"""Time limit in seconds for opening a tab."""
CLOSE_SECONDS = 3.0
"""Time limit in seconds for closing a tab."""
POPUP_SECONDS = 3.0
"""Maximum time in seconds to wait for a tab that a page opens."""
VISIBILITY_SECONDS = 1.0
"""Time limit in seconds for a page to report whether it is visible."""

MAX_DIALOGS = 30
"""Number of dialogs within `DIALOG_WINDOW_SECONDS` at which a page is closed: it would never stop by itself."""
DIALOG_WINDOW_SECONDS = 15.0
"""Time in seconds over which the dialogs of a page are counted."""
ACCEPT_SECONDS = 5.0
"""Time limit in seconds for accepting a dialog."""
MAX_MESSAGE = 300
"""Maximum length of a dialog's message in a note."""

PREVIOUS_IN_FRONT = "The tab was closed; the one before it is in front again."
LAST_TAB_CLOSED = "The last tab was closed: a blank one was opened in its place."


@dataclass(eq=False, slots=True)
class _OpenPage:
    page: Page
    lifetime: cdp.TargetLifetime
    tab: Tab | None = None
    """None until the page is used."""
    is_crashed: bool = False
    dialog_times: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_DIALOGS))
    """Times of the newest dialogs, as `time.monotonic` returns them."""


class Tabs:
    """All tabs of one browser context. The newest is in front. Collects notes for the next snapshot."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._pages: list[_OpenPage] = []
        """Open pages; the last one is in front."""
        self._front: Tab | None = None
        """The tab that was used last."""
        self._targets: set[str] = set()
        self._opening: dict[str, str] = {}
        """URL by target id of the tabs that Chromium is opening and Playwright has not reported yet."""
        self._own_openings = 0
        """Number of tabs that the service itself is opening."""
        self._changes = cdp.ChangeSignal()
        self._tasks = cdp.BackgroundTasks()
        self._successor_lock = asyncio.Lock()
        self._notes: list[str] = []

    async def start(self, browser_channel: cdp.Channel, context_id: str) -> None:
        """Take over the existing tabs and follow new ones.

        Args:
            browser_channel: The channel to the browser as a whole.
            context_id: Chromium's id of the browser context; empty for the default one.
        """
        self._context.on("page", lambda page: self._on_page(page))
        self._context.on("dialog", lambda dialog: self._on_dialog(dialog))
        for page in self._context.pages:
            self._add(page)
        if (visible := await self._visible()) is not None:
            self._move_to_front(visible)
        browser_channel.on("Target.targetCreated", lambda event: self._on_target_created(event, context_id))
        browser_channel.on("Target.targetDestroyed", lambda event: self._on_target_destroyed(event))
        await browser_channel.send("Target.setDiscoverTargets", {"discover": True, "filter": [{"type": "page"}]})
        self._opening.clear()  # Chromium reports the existing tabs too

    def note(self, line: str) -> None:
        """Add a line to the notes of the next snapshot."""
        if line not in self._notes:
            self._notes.append(line)
        if len(self._notes) > MAX_KEPT_NOTES:
            del self._notes[MAX_NOTES]

    def take_notes(self) -> tuple[str, ...]:
        """Return the notes collected since the last call."""
        notes, self._notes = self._notes, []
        if len(notes) > MAX_NOTES:
            half = MAX_NOTES // 2
            notes = [*notes[:half], "More happened here that is left out.", *notes[-half:]]
        return tuple(notes)

    def end(self, reason: str) -> None:
        """Fail every call in flight: the browser is gone."""
        for each in self._pages:
            each.lifetime.end(reason)
        self._changes.notify()

    def has_target(self, target_id: str) -> bool:
        """Return whether a tab has this target id, which is also the id of its main frame."""
        return target_id in self._targets

    def is_crashed(self, tab: Tab) -> bool:
        """Return whether the tab has crashed and is not closed yet."""
        return any(each.is_crashed for each in self._pages if each.page is tab.page)

    async def front(self) -> Tab:
        """Return the tab in front, ready for use; open a blank one if there is none.

        Raises:
            TabGone: The tab was closed.
            PageUnresponsive: The tab did not respond in time.
        """
        await self._close_crashed()
        await self._open_successor()
        page = self._pages[-1]
        tab = page.tab or await self._attach(page)
        if tab is not self._front:
            if self._front is not None:
                await self._front.set_focused(False)
                await tab.channel.try_send("Page.bringToFront")
                await tab.set_focused(True)
            self._front = tab
        return tab

    async def settle(self, tab: Tab) -> Tab:
        """Wait until `tab`, and a tab that it opened, have reacted to an action. Return the tab in front then."""
        await tab.load.settle()
        await self._wait_for_popup()
        if self._pages and self._pages[-1].tab is tab:
            return tab
        front = await self.front()
        await front.load.settle()
        return front

    def rotate(self, *, backward: bool) -> None:
        """Bring the tab to the front that was in front longest ago, or (`backward`) the one just before."""
        pages = self._pages
        self._pages = pages[-1:] + pages[:-1] if backward else pages[1:] + pages[:1]

    async def close_front(self) -> None:
        """Close the tab in front. The one before it comes to the front, or a blank one if it is the last."""
        if self._pages:
            page = self._pages[-1].page
            self._remove(page)
            if self._pages:
                self.note(PREVIOUS_IN_FRONT)
            await self._close_page(page)

    async def replace(self, tab: Tab) -> Tab:
        """Close a tab that does not respond. Return a blank one in its place."""
        self._remove(tab.page)
        await self.open_blank()
        await _close(tab.page)
        return await self.front()

    async def open_blank(self) -> _OpenPage:
        """Open a blank tab in front.

        Raises:
            BrowserFailure: The browser does not open it.
        """
        self._own_openings += 1
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                page = await self._context.new_page()
        except TimeoutError:
            raise BrowserFailure("The browser does not open a tab.") from None
        except PlaywrightError as error:
            raise cdp.translate(error) from error
        finally:
            self._own_openings -= 1
        self._add(page)
        return self._move_to_front(page)

    async def _attach(self, page: _OpenPage) -> Tab:
        """Open a CDP session with `page`, or with a blank tab in its place if it does not respond."""
        try:
            page.tab = await Tab.attach(page.page, page.lifetime, self.note)
        except cdp.PageUnresponsive:
            self.note(f"The tab with {page.page.url[:MAX_URL]} did not respond and was closed.")
            self._close_soon(page.page)
            page = await self.open_blank()
            page.tab = await Tab.attach(page.page, page.lifetime, self.note)
        return page.tab

    async def _close_crashed(self) -> None:
        for each in [each for each in self._pages if each.is_crashed]:
            await self._close_page(each.page)

    async def _close_page(self, page: Page) -> None:
        """Close a page. If no other is left, open a blank tab before, because Chromium ends with its last window."""
        self._remove(page)
        await self._open_successor()
        await _close(page)

    async def _open_successor(self) -> None:
        """Open a blank tab if there is none."""
        async with self._successor_lock:
            if not self._pages:
                await self.open_blank()
                if self._front is not None:
                    self.note(LAST_TAB_CLOSED)

    async def _try_to_close(self, page: Page) -> None:
        with contextlib.suppress(BrowserFailure):
            await self._close_page(page)

    async def _try_to_open_successor(self) -> None:
        with contextlib.suppress(BrowserFailure):  # the browser is gone; the next action reports it
            await self._open_successor()

    async def _wait_for_popup(self) -> None:
        """Wait for a tab that is being opened; note one whose server does not respond in time."""
        await self._changes.wait_until(lambda: not self._opening, seconds=POPUP_SECONDS)
        for url in self._opening.values():
            self.note(f"A new tab is being opened, and its server has not answered yet: {url[:MAX_URL]}")
        self._opening.clear()

    async def _visible(self) -> Page | None:
        """Return the tab that a person sees if there are several tabs."""
        if len(self._pages) < 2:
            return None
        for page in [each.page for each in reversed(self._pages)]:
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(VISIBILITY_SECONDS):
                    if await page.evaluate("document.visibilityState") == "visible":
                        return page
        return None

    def _add(self, page: Page) -> None:
        if page.is_closed() or self._find(page) is not None:
            return
        self._pages.append(_OpenPage(page, cdp.TargetLifetime()))
        page.on("close", lambda closed: self._on_close(closed))
        page.on("crash", lambda crashed: self._on_crash(crashed))

    def _find(self, page: Page | None) -> _OpenPage | None:
        return next((each for each in self._pages if each.page is page), None)

    def _move_to_front(self, page: Page) -> _OpenPage:
        found = self._find(page)
        if found is None:
            raise cdp.TabGone("The tab was closed.", status=cdp.CONFLICT)
        self._pages.remove(found)
        self._pages.append(found)
        return found

    def _remove(self, page: Page) -> None:
        if (found := self._find(page)) is not None:
            self._pages.remove(found)
            found.lifetime.end("The tab was closed.")
        self._changes.notify()

    def _close_soon(self, page: Page) -> None:
        self._remove(page)
        self._tasks.start(self._try_to_close(page))

    def _on_page(self, page: Page) -> None:
        self._opening.pop(next(iter(self._opening), ""), None)
        self._add(page)
        self._changes.notify()
        if not self._own_openings:
            self.note(f"A new tab was opened and is in front: {page.url[:MAX_URL]} (Control+w closes it)")
        if len(self._pages) > MAX_TABS:
            oldest = next(each.page for each in self._pages if each.tab is None or each.tab is not self._front)
            self.note(f"There were more than {MAX_TABS} tabs: the oldest was closed ({oldest.url[:MAX_URL]}).")
            self._close_soon(oldest)

    def _on_close(self, page: Page) -> None:
        was_front = bool(self._pages) and self._pages[-1].page is page
        self._remove(page)
        if was_front and self._pages:
            self.note(PREVIOUS_IN_FRONT)
        elif was_front:
            self._tasks.start(self._try_to_open_successor())

    def _on_crash(self, page: Page) -> None:
        self.note(f"The tab with {page.url[:MAX_URL]} crashed and was closed.")
        if (found := self._find(page)) is not None:
            found.is_crashed = True
            found.lifetime.end("The tab crashed. Another one is in front now: view it, or navigate again.")
        self._changes.notify()

    def _on_dialog(self, dialog: Dialog) -> None:
        """Accept a dialog (alert, confirm, prompt, beforeunload) at once, because its page is blocked until then.

        The action that caused it was intended, so the answer is yes; a prompt gets its default value. A page that
        opens dialogs without end is closed.
        """
        page = self._find(dialog.page)
        if page is not None:
            page.dialog_times.append(time.monotonic())
            times = page.dialog_times
            if len(times) == MAX_DIALOGS and times[-1] - times[0] < DIALOG_WINDOW_SECONDS:
                self.note("The page opened one dialog after another without end: its tab was closed.")
                self._close_soon(page.page)
                return
        self.note(_dialog_note(dialog))
        self._tasks.start(_accept(dialog))

    def _on_target_created(self, event: cdp.Json, context_id: str) -> None:
        target = cdp.item(event, "targetInfo")
        if cdp.text(target, "type") == "page" and context_id in ("", cdp.text(target, "browserContextId")):
            self._targets.add(cdp.text(target, "targetId"))
            self._opening[cdp.text(target, "targetId")] = cdp.text(target, "url")

    def _on_target_destroyed(self, event: cdp.Json) -> None:
        self._targets.discard(cdp.text(event, "targetId"))
        self._opening.pop(cdp.text(event, "targetId"), None)
        self._changes.notify()


async def _close(page: Page) -> None:
    """Close a page, whatever state it is in."""
    with contextlib.suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await page.close()


async def _accept(dialog: Dialog) -> None:
    with contextlib.suppress(PlaywrightError, TimeoutError):  # the page may have navigated or closed meanwhile
        async with asyncio.timeout(ACCEPT_SECONDS):
            await dialog.accept(dialog.default_value if dialog.type == "prompt" else None)


def _dialog_note(dialog: Dialog) -> str:
    message = " ".join(dialog.message.split())
    message = message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "…"
    match dialog.type:
        case "alert":
            return f"An alert said {message!r}; it was closed."
        case "confirm":
            return f"The page asked {message!r}; it was answered with OK."
        case "prompt":
            return f"The page asked {message!r} for a text; it got {dialog.default_value!r}."
        case _:
            return "The page asked whether to leave it; it was left."
