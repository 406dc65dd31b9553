"""The tabs of one browser: which is in front, what opens and closes, and what there is to tell about it."""

import asyncio
import contextlib

from playwright.async_api import BrowserContext, Page
from playwright.async_api import Error as PlaywrightError

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.channel import Channel, Ending, Json, item, text
from app.infrastructure.browser.dialogs import Dialogs
from app.infrastructure.browser.failures import Hung, translated
from app.infrastructure.browser.tab import Tab, close_page

MOST_TABS = 10
MOST_NOTES = 12
MAX_URL = 200
OPEN_SECONDS = 10.0
POPUP_SECONDS = 3.0


class Tabs:
    """All tabs, the newest in front. `notes` collects what happened since the last view."""

    def __init__(self, context: BrowserContext) -> None:
        self._context = context
        self._pages: list[Page] = []
        self._tabs: dict[Page, Tab] = {}
        self._endings: dict[Page, Ending] = {}
        self._crashed: set[Page] = set()
        self._targets: set[str] = set()
        self._opening: dict[str, str] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._front: Page | None = None
        self._making = 0
        """Tabs that we are opening ourselves."""
        self._dialogs = Dialogs(self.note, self._close_soon)
        self.notes: list[str] = []
        self.next_number = 1
        """For the next element that is numbered. Numbers are not used again soon, so that an old one hits nothing."""

    async def start(self, wire: Channel, context_id: str) -> None:
        """Take over the tabs that there are; `wire` speaks to the browser as a whole."""
        self._context.on("page", lambda page: self._opened(page))
        self._context.on("dialog", lambda dialog: self._dialogs.opened(dialog))
        for page in self._context.pages:
            self._adopt(page)
        if (visible := await self._visible()) is not None:
            self._raise(visible)
        wire.on("Target.targetCreated", lambda event: self._target_created(event, context_id))
        wire.on("Target.targetDestroyed", lambda event: self._target_destroyed(event))
        await wire.send("Target.setDiscoverTargets", {"discover": True, "filter": [{"type": "page"}]})
        self._opening.clear()  # those that there are already are told too

    def note(self, words: str) -> None:
        """Remember `words` for the next view."""
        if len(self.notes) == MOST_NOTES:
            self.notes.append("More happened than is told here.")
        if len(self.notes) < MOST_NOTES and words not in self.notes[-1:]:
            self.notes.append(words)

    def drain(self) -> tuple[str, ...]:
        """What there is to tell, once."""
        told, self.notes = tuple(self.notes), []
        return told

    def end(self, reason: str) -> None:
        """The browser is gone: whoever waits for a page waits no more."""
        for ending in self._endings.values():
            ending.end(reason)
        self._changed.set()

    def has_target(self, target_id: str) -> bool:
        """Whether one of our tabs has this id, which is also that of its outermost frame."""
        return target_id in self._targets

    def is_crashed(self, tab: Tab) -> bool:
        """Whether the tab has crashed and was not cleared away yet."""
        return tab.page in self._crashed

    async def front(self) -> Tab:
        """The tab in front, ready to be driven; a blank one when there is none.

        Raises:
            TabGone, Hung: see there.
        """
        await self._bury_crashed()
        page = self._pages[-1] if self._pages else await self._new_page()
        tab = self._tabs.get(page) or await self._attach(page)
        page = tab.page
        if page is not self._front:
            if self._front is not None:
                if (before := self._tabs.get(self._front)) is not None:
                    await before.focus(False)
                await tab.bring_to_front()
                await tab.focus(True)
            tab.forget()
            self._front = page
        return tab

    def changed(self, tab: Tab) -> bool:
        """Whether `tab` is no longer the one in front."""
        return not self._pages or self._pages[-1] is not tab.page

    async def popped_up(self) -> None:
        """Wait for a tab that is being opened; one whose server takes its time is noted instead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POPUP_SECONDS):
                while self._opening:
                    self._changed.clear()
                    await self._changed.wait()
        for url in self._opening.values():
            self.note(f"A new tab is being opened, and its server has not answered yet: {url[:MAX_URL]}")
        self._opening.clear()

    async def open(self) -> None:
        """Open a blank tab in front."""
        await self._new_page()

    def turn(self, *, back: bool) -> None:
        """Bring another tab to the front: the one that was there longest ago, or (`back`) the one just before."""
        pages = self._pages
        self._pages = pages[-1:] + pages[:-1] if back else pages[1:] + pages[:1]

    async def close_front(self) -> None:
        """Close the tab in front; the one that was there before it is in front then."""
        if self._pages:
            await close_page(self._pages[-1])

    async def replace(self, tab: Tab) -> Tab:
        """A blank tab instead of one that does not answer."""
        self._forget(tab.page)
        await self._new_page()
        await close_page(tab.page)
        return await self.front()

    async def _new_page(self) -> Page:
        self._making += 1
        try:
            with translated():
                async with asyncio.timeout(OPEN_SECONDS):
                    page = await self._context.new_page()
        except TimeoutError:
            raise BrowserFailure("The browser does not open a tab.") from None
        finally:
            self._making -= 1
        self._adopt(page)
        self._raise(page)
        return page

    async def _attach(self, page: Page) -> Tab:
        """Begin to drive `page`, or a blank tab in its place when it hangs."""
        try:
            tab = await Tab.attach(page, self._endings[page])
        except Hung:
            self.note(f"The tab with {page.url[:MAX_URL]} did not respond and was closed.")
            self._close_soon(page)
            page = await self._new_page()
            tab = await Tab.attach(page, self._endings[page])
        self._tabs[page] = tab
        return tab

    async def _bury_crashed(self) -> None:
        for page in [each for each in self._pages if each in self._crashed]:
            self._forget(page)
            if not self._pages:
                await self._new_page()
            await close_page(page)

    def _adopt(self, page: Page) -> None:
        if page in self._endings or page.is_closed():
            return
        self._pages.append(page)
        self._endings[page] = Ending()
        page.on("close", lambda gone: self._closed(gone))
        page.on("crash", lambda broken: self._has_crashed(broken))

    def _opened(self, page: Page) -> None:
        self._opening.pop(next(iter(self._opening), ""), None)
        self._adopt(page)
        self._changed.set()
        if not self._making:
            self.note(f"A new tab was opened and is in front: {page.url[:MAX_URL]} (Control+w closes it)")
        if len(self._pages) > MOST_TABS:
            oldest = next(each for each in self._pages if each is not self._front)
            self.note(f"There were more than {MOST_TABS} tabs: the oldest was closed ({oldest.url[:MAX_URL]}).")
            self._close_soon(oldest)

    def _closed(self, page: Page) -> None:
        was_front = bool(self._pages) and self._pages[-1] is page
        self._forget(page)
        if was_front and self._pages:
            self.note("The tab was closed; the one before it is in front again.")

    def _has_crashed(self, page: Page) -> None:
        self._crashed.add(page)
        self.note(f"The tab with {page.url[:MAX_URL]} crashed and was closed.")
        if (ending := self._endings.get(page)) is not None:
            ending.end("The tab crashed. Another one is in front now: view it, or navigate again.")
        self._changed.set()

    def _forget(self, page: Page) -> None:
        if page in self._pages:
            self._pages.remove(page)
        if (tab := self._tabs.pop(page, None)) is not None:
            tab.traffic.stir()
        if (ending := self._endings.pop(page, None)) is not None:
            ending.end("The tab was closed.")
        self._crashed.discard(page)
        self._dialogs.forget(page)
        self._changed.set()

    def _raise(self, page: Page) -> None:
        self._pages.remove(page)
        self._pages.append(page)

    def _close_soon(self, page: Page) -> None:
        self._forget(page)
        task = asyncio.ensure_future(close_page(page))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _visible(self) -> Page | None:
        """The tab that a person sees, when there are several."""
        if len(self._pages) < 2:
            return None
        for page in list(reversed(self._pages)):
            with contextlib.suppress(PlaywrightError, TimeoutError):
                async with asyncio.timeout(1):
                    if await page.evaluate("document.visibilityState") == "visible":
                        return page
        return None

    def _target_created(self, event: Json, context_id: str) -> None:
        info = item(event, "targetInfo")
        if text(info, "type") == "page" and context_id in ("", text(info, "browserContextId")):
            self._targets.add(text(info, "targetId"))
            self._opening[text(info, "targetId")] = text(info, "url")

    def _target_destroyed(self, event: Json) -> None:
        self._targets.discard(text(event, "targetId"))
        self._opening.pop(text(event, "targetId"), None)
        self._changed.set()
