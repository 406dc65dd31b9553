"""One tab: its CDP session, its frames, what it loads, and what was told of it last."""

import asyncio
import contextlib
from collections.abc import Sequence

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page

from app.infrastructure.browser.channel import Channel, Ending, Json, number
from app.infrastructure.browser.excerpt import Line
from app.infrastructure.browser.frames import Frames
from app.infrastructure.browser.screenshot import Camera
from app.infrastructure.browser.traffic import Traffic

ATTACH_SECONDS = 10.0
CLOSE_SECONDS = 3.0


class Tab:
    """A tab that is driven. Made by `attach`."""

    def __init__(self, page: Page, channel: Channel) -> None:
        self.page = page
        self.channel = channel
        self.frames = Frames(page, channel, channel.ending, self._file_wanted)
        self.traffic = Traffic(channel)
        self.camera = Camera(channel)
        self.chooser: tuple[Channel, int] | None = None
        """The file field (by its backend node) for which the page asked for a file, and nobody gave one yet."""
        self.told: Sequence[Line] = ()
        """The lines of the last view that the model was given."""
        self.told_of = ""
        """The document that they are from."""
        self.is_restless = False
        """Its page goes on to another again and again, which may well come between when another is opened."""
        self.numbered_at = 0
        """How many documents there had been when elements were numbered last."""

    @property
    def ending(self) -> Ending:
        """Ends with the tab."""
        return self.channel.ending

    @classmethod
    async def attach(cls, page: Page, ending: Ending) -> "Tab":
        """Begin to drive `page`.

        Raises:
            TabGone, Hung: see there.
        """
        session = await ending.within(page.context.new_cdp_session(page), seconds=ATTACH_SECONDS)
        tab = cls(page, Channel(session, ending))
        await tab.frames.take_over(tab.channel)
        await tab.focus(True)
        tab.traffic.main_id = await tab.frames.main_id()
        return tab

    async def focus(self, focused: bool) -> None:
        """Let the page believe that its window has the keyboard, whatever else is on the desktop."""
        await self.channel.try_send("Emulation.setFocusEmulationEnabled", {"enabled": focused})

    async def bring_to_front(self) -> None:
        """Show the tab in its window."""
        await self.channel.try_send("Page.bringToFront")

    def forget(self) -> None:
        """The next view is told whole."""
        self.told, self.told_of = (), ""

    def _file_wanted(self, channel: Channel, event: Json) -> None:
        self.chooser = (channel, int(number(event, "backendNodeId")))


async def close_page(page: Page) -> None:
    """Close a page whatever state it is in."""
    with contextlib.suppress(PlaywrightError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await page.close()
