"""What of a page is told after a call: all of it, or what changed; with what happened, and a screenshot."""

import asyncio

from app.domain.models.browser import PageView
from app.infrastructure.browser.console import end_script
from app.infrastructure.browser.excerpt import changes, choose
from app.infrastructure.browser.failures import ContextGone, Hung
from app.infrastructure.browser.reading import Reading, read_page
from app.infrastructure.browser.settle import settle
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.tabs import Tabs

MOST_TRIES = 6
"""For a page that goes on to another while it is read; after half of them it is held up."""
MAX_URL = 300
MAX_TITLE = 200
HTTP_ERROR = 400
NUMBERS = 900
"""Elements are numbered on from page to page up to about here, then from 1 again: short, and no old number is right."""


async def view_page(tabs: Tabs, tab: Tab, *, whole: bool, scrolled: bool = False) -> PageView:
    """The page of `tab`, without the notes. Unless `whole`, only what changed, when most is as the model was told last;
    after scrolling nothing is told to be gone.

    Raises:
        BrowserFailure: the page cannot be read.
    """
    reading, screenshot = await _look(tabs, tab)
    excerpt = choose(reading.sheet)
    told = None
    if not whole and tab.told_of == reading.token:
        told = changes(tab.told, excerpt.lines, gone=not scrolled)
    _note(tabs, tab, reading)
    tab.told, tab.told_of = excerpt.lines, reading.token
    return PageView(
        url=reading.url[:MAX_URL],
        title=reading.title[:MAX_TITLE],
        text=excerpt.text if told is None else told,
        partial=told is not None,
        unshown=excerpt.unshown,
        screenshot=screenshot,
    )


async def free(tabs: Tabs, tab: Tab) -> None:
    """End a script of the page that keeps it from answering."""
    await end_script(tab)
    tabs.note("A script of the page ran on and on, and was stopped.")


async def _look(tabs: Tabs, tab: Tab) -> tuple[Reading, bytes | None]:
    freed = False
    for tried in range(MOST_TRIES):
        if tabs.next_number > NUMBERS and tab.traffic.commits != tab.numbered_at:
            tabs.next_number = 1
        camera = asyncio.ensure_future(tab.camera.take())
        try:
            reading = await read_page(tab.frames, tabs.next_number)
            tabs.next_number = reading.next_number
            tab.numbered_at = tab.traffic.commits
            return reading, await camera
        except ContextGone:
            if tried < MOST_TRIES // 2:
                await settle(tabs, tab)
                continue
            tab.is_restless = True
            await tab.channel.try_send("Page.stopLoading")
            tabs.note("The page goes on to another again and again; it was stopped to be read.")
        except Hung:
            if freed:
                raise
            freed = True
            await free(tabs, tab)
        finally:
            camera.cancel()
    raise ContextGone


def _note(tabs: Tabs, tab: Tab, reading: Reading) -> None:
    """What is to be known of a page beside its text; of a document that was told already only what changes."""
    if reading.loading:
        tabs.note("The page is still loading; this is what is there so far.")
    if reading.short:
        tabs.note("The page is too large to be read whole: part of it is missing here.")
    if tab.told_of == reading.token:
        return
    if reading.status >= HTTP_ERROR:
        tabs.note(f"The server answered with HTTP status {reading.status}.")
    kind = reading.content_type
    if kind == "application/pdf":
        tabs.note(
            "This is a PDF in the browser's viewer: its text is not shown here. Download it in a shell to read it."
        )
    elif kind.startswith(("image/", "video/", "audio/")):
        tabs.note(f"This is no page but a file of type {kind}.")
