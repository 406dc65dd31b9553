"""The frames of a page: which CDP session speaks to each, and the worlds in them."""

import asyncio
from collections.abc import Callable, Sequence

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Frame, Page

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.channel import Channel, Ending, Json, item, items, text
from app.infrastructure.browser.failures import ContextGone
from app.infrastructure.browser.world import PAGE_SCRIPT, Owner, World, javascript, make_world

ATTACH_SECONDS = 5.0
ALIVE_SECONDS = 2.0
"""For a frame to answer at all; the page around it is told without one that does not."""
MOST_FRAMES = 30
"""Frames of another process that are asked for their sessions."""


class Frames:
    """The worlds of one tab. Frames of another site run in a process of their own and have a session of their own."""

    def __init__(
        self, page: Page, channel: Channel, ending: Ending, file_wanted: Callable[[Channel, Json], None]
    ) -> None:
        """`file_wanted` hears when a page asks for a file: the session, and the event that names the field."""
        self._page = page
        self._channel = channel
        self._ending = ending
        self._file_wanted = file_wanted
        self._main = ""
        self._worlds: dict[str, World] = {}
        self._remote: dict[Frame, Channel] = {}
        self._channels: dict[str, Channel] = {}

    async def take_over(self, channel: Channel) -> None:
        """Hear of what goes on in the documents of `channel`, and keep the desktop's dialogs from holding them up."""
        channel.on("Page.fileChooserOpened", lambda event: self._file_wanted(channel, event))
        await channel.send("Page.enable", seconds=ATTACH_SECONDS)
        await channel.send("Page.setInterceptFileChooserDialog", {"enabled": True}, seconds=ATTACH_SECONDS)
        script: Json = {"source": javascript(PAGE_SCRIPT), "runImmediately": True}
        await channel.send("Page.addScriptToEvaluateOnNewDocument", script, seconds=ATTACH_SECONDS)

    async def main(self) -> World:
        """The world of the tab's outermost document."""
        try:
            return await self.world(await self.main_id(), self._channel, None)
        except ContextGone:
            self._main = ""
            raise

    async def main_id(self) -> str:
        """The id of the tab's outermost frame."""
        if not self._main:
            tree = await self._channel.send("Page.getFrameTree")
            self._main = text(tree, "frameTree", "frame", "id")
        return self._main

    async def world(self, frame_id: str, channel: Channel, owner: Owner | None) -> World:
        """The world of the frame's present document, made when it has none that answers."""
        known = self._worlds.get(frame_id)
        if known is not None and known.channel is channel:
            try:
                await known.call("alive", seconds=ALIVE_SECONDS if owner else None)
                known.owner = owner
                return known
            except ContextGone:
                pass
        made = await make_world(channel, frame_id, owner)
        if frame_id == self._main:
            self._worlds.clear()  # of the document before, and of its frames
        self._worlds[frame_id] = made
        return made

    def owner_of(self, index: int) -> World | None:
        """The world whose element was given the number `index`."""
        for world in self._worlds.values():
            if any(index in span for span in world.numbers):
                return world
        return None

    def child(self, owner: World, key: int) -> World | None:
        """The world of the frame that the element `key` of `owner`'s document holds, as it was read last."""
        for world in self._worlds.values():
            if world.owner is not None and world.owner.world is owner and world.owner.key == key:
                return world
        return None

    async def inside(self, owner: World, keys: Sequence[int]) -> list[World | None]:
        """The worlds inside the frame elements `keys` of `owner`'s document; None where there is none to be had."""
        ids = await self._frame_ids(owner, keys)
        local = await self._local_ids(owner.channel)
        if any(each and each not in local and each not in self._channels for each in ids):
            await self._attach()
        return [await self._inside(owner, key, each, local) for key, each in zip(keys, ids, strict=True)]

    async def _inside(self, owner: World, key: int, frame_id: str, local: set[str]) -> World | None:
        channel = self._channels.get(frame_id) or (owner.channel if frame_id in local else None)
        if channel is None:
            return None
        try:
            return await self.world(frame_id, channel, Owner(owner, key))
        except BrowserFailure:
            # A frame that is gone, or whose process hangs or has died, is left out: the page around it can be read.
            self._forget(frame_id)
            return None

    def _forget(self, frame_id: str) -> None:
        """The next reading asks for the frame's session again."""
        lost = self._channels.pop(frame_id, None)
        for frame in [frame for frame, channel in self._remote.items() if channel is lost]:
            del self._remote[frame]

    async def _frame_ids(self, owner: World, keys: Sequence[int]) -> list[str]:
        async def frame_id(handle: str) -> str:
            if not handle:
                return ""
            return text(await owner.channel.send("DOM.describeNode", {"objectId": handle}), "node", "frameId")

        return await asyncio.gather(*(frame_id(each) for each in await owner.members("frameElements", list(keys))))

    async def _local_ids(self, channel: Channel) -> set[str]:
        tree = await channel.send("Page.getFrameTree")
        found: set[str] = set()

        def visit(node: Json) -> None:
            found.add(text(node, "frame", "id"))
            for each in items(node, "childFrames"):
                visit(each)

        visit(item(tree, "frameTree"))
        return found

    async def _attach(self) -> None:
        """Open a session with every frame that has a process of its own and none with us yet."""
        frames = [each for each in self._page.frames if each not in self._remote][1 : MOST_FRAMES + 1]
        for frame in [each for each in self._remote if each.is_detached()]:
            del self._remote[frame]
        await asyncio.gather(*(self._attach_one(frame) for frame in frames))

    async def _attach_one(self, frame: Frame) -> None:
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                session = await self._page.context.new_cdp_session(frame)
        except (PlaywrightError, TimeoutError):
            return  # it shares the process of the frame around it
        channel = Channel(session, self._ending)
        try:
            await self.take_over(channel)
            tree = await channel.send("Page.getFrameTree", seconds=ATTACH_SECONDS)
        except BrowserFailure:
            return
        self._remote[frame] = channel
        self._channels[text(tree, "frameTree", "frame", "id")] = channel
