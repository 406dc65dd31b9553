"""The service's JavaScript inside a page: one isolated world per document, in every frame of a tab.

The page's own code can neither see nor change an isolated world. A world exists as long as its document. It stores the
numbers of the elements as references to the elements themselves, so a number never matches a different element.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Frame, Page

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp

MAIN_WORLD_SCRIPT = "page.js"
"""Name of the only script that runs in the page's own world."""
ISOLATED_WORLD_SCRIPTS = (
    *("dom.js", "elements.js", "markdown.js", "blocks.js", "fields.js", "drawings.js", "values.js", "scrolling.js"),
    *("input.js", "editors.js"),
)
"""Names of the scripts of the isolated world, in the order in which they are joined."""
WORLD_NAME = "anker"
"""Name of the isolated world and of its object group, as debuggers show it."""
ATTACH_SECONDS = 5.0
"""Time limit in seconds for opening a CDP session with a frame."""
FRAME_ALIVE_SECONDS = 2.0
"""Time limit in seconds for a frame to respond; the page is read without a frame that does not."""
MAX_FOCUS_DEPTH = 4
"""Maximum depth of nested frames in which to look for the focus, or for what scrolls."""
MAX_REMOTE_FRAMES = 30
"""Maximum number of frames to try to open a session with at a time."""

_PROMPTS = f"prompts{secrets.token_hex(8)}"
"""Prefix of the events with which the isolated world asks `page.js` for what it refused: no page can know it."""

_RUN = "function (name, args) { return this.run(name, args); }"
_GET_OBJECT = "function (name, args) { return this.api[name](...args); }"
_ADD_SHADOW_ROOT = "function (host, root) { this.api.addShadowRoot(host, root); }"


@dataclass(frozen=True, slots=True)
class FrameOwner:
    """The element that contains a frame, as its key in the world of the document around the frame."""

    world: "IsolatedWorld"
    key: int


class IsolatedWorld:
    """The service's JavaScript in one document. Created by `create`."""

    def __init__(self, channel: cdp.Channel, context_id: int, id: str, owner: FrameOwner | None) -> None:
        self.channel = channel
        self.owner = owner
        """Element that contains the document now; None for a tab's main document."""
        self.id = id
        """CDP handle of the script's object in the document. Unlike an execution context's id, it is never reused."""
        self.numbers: list[range] = []
        """Numbers that elements of the document got."""
        self._context_id = context_id

    @classmethod
    async def create(cls, channel: cdp.Channel, frame_id: str, owner: FrameOwner | None) -> "IsolatedWorld":
        """Create a world in the current document of a frame.

        Raises:
            DocumentGone: The frame no longer exists.
        """
        created = await channel.send("Page.createIsolatedWorld", {"frameId": frame_id, "worldName": WORLD_NAME})
        context_id = int(cdp.number(created, "executionContextId"))
        call = {"functionDeclaration": _world_source(), "executionContextId": context_id}
        started = await channel.send("Runtime.callFunctionOn", call)
        return cls(channel, context_id, cdp.text(started, "result", "objectId"), owner)

    async def call(self, name: str, *args: object, seconds: float | None = None) -> cdp.Json:
        """Call a function of the world's API and return its object, an empty one if it returns none.

        Raises:
            DocumentGone: The document, or the element that the call is about, is gone.
            BrowserFailure: The function refused; its message says why.
            TabGone: The tab is gone.
            PageUnresponsive: The time limit passed.
        """
        arguments: list[cdp.Json] = [{"value": name}, {"value": args}]
        result = await self._call_function(_RUN, arguments, by_value=True, seconds=seconds)
        answer = cdp.item(result, "result", "value")
        if answer.get("gone"):
            raise cdp.DocumentGone
        if refusal := cdp.text(answer, "refusal"):
            raise BrowserFailure(refusal, status=int(cdp.number(answer, "status")))
        return cdp.item(answer, "value")

    async def handle(self, name: str, *args: object) -> str:
        """Call a function of the API; return the CDP handle of the object that it returns, empty if there is none."""
        found = await self._call_function(_GET_OBJECT, [{"value": name}, {"value": args}])
        return cdp.text(found, "result", "objectId")

    async def add_closed_shadow_roots(self, suspect_count: int) -> int:
        """Give the world the closed shadow roots of the elements that may have one. Return how many were found."""
        if not suspect_count:
            return 0
        found = await asyncio.gather(*(self._add_closed_shadow_roots(position) for position in range(suspect_count)))
        await self.call("markExamined")
        await self.release_handles()
        return sum(found)

    async def release_handles(self) -> None:
        """Release every handle. Objects that a debugger holds are not garbage collected."""
        await self.channel.try_send("Runtime.releaseObjectGroup", {"objectGroup": WORLD_NAME})

    async def _add_closed_shadow_roots(self, suspect: int) -> int:
        host = await self.handle("suspectElement", suspect)
        if not host:
            return 0
        described = await self.channel.send("DOM.describeNode", {"objectId": host, "depth": 0, "pierce": True})
        roots = [
            each for each in cdp.items(described, "node", "shadowRoots") if cdp.text(each, "shadowRootType") == "closed"
        ]
        for root in roots:
            node = {
                "backendNodeId": int(cdp.number(root, "backendNodeId")),
                "executionContextId": self._context_id,
                "objectGroup": WORLD_NAME,
            }
            resolved = cdp.text(await self.channel.send("DOM.resolveNode", node), "object", "objectId")
            await self._call_function(_ADD_SHADOW_ROOT, [{"objectId": host}, {"objectId": resolved}])
        return len(roots)

    async def _call_function(
        self, function: str, arguments: list[cdp.Json], *, by_value: bool = False, seconds: float | None = None
    ) -> cdp.Json:
        call = {
            "functionDeclaration": function,
            "objectId": self.id,
            "arguments": arguments,
            "returnByValue": by_value,
            "awaitPromise": True,
            "objectGroup": WORLD_NAME,
        }
        answer = await self.channel.send("Runtime.callFunctionOn", call, seconds=seconds)
        if "exceptionDetails" in answer:
            reason = cdp.text(answer, "exceptionDetails", "exception", "description").partition("\n")[0]
            raise BrowserFailure(f"The page could not be inspected: {reason[:200]}")
        return answer


class FrameWorlds:
    """The isolated worlds of one tab, including those of frames of other sites."""

    def __init__(
        self, page: Page, channel: cdp.Channel, on_file_chooser: Callable[[cdp.Channel, cdp.Json], None]
    ) -> None:
        """`on_file_chooser` receives the channel and the event when the page asks for a file."""
        self.main_id = ""
        """Id of the tab's main frame."""
        self._page = page
        self._channel = channel
        self._on_file_chooser = on_file_chooser
        self._worlds: dict[str, IsolatedWorld] = {}
        self._remote: dict[str, tuple[Frame, cdp.Channel]] = {}
        """By frame id: the frames with a process, and so a CDP session, of their own."""

    async def prepare_channel(self, channel: cdp.Channel) -> str:
        """Enable page events on `channel`, and keep native dialogs (file chooser, print) from blocking the page.

        Return the id of the frame that the channel belongs to.
        """
        channel.on("Page.fileChooserOpened", lambda event: self._on_file_chooser(channel, event))
        await channel.send("Page.enable", seconds=ATTACH_SECONDS)
        await channel.send("Page.setInterceptFileChooserDialog", {"enabled": True}, seconds=ATTACH_SECONDS)
        script = {"source": read_script(MAIN_WORLD_SCRIPT), "runImmediately": True}
        await channel.send("Page.addScriptToEvaluateOnNewDocument", script, seconds=ATTACH_SECONDS)
        tree = await channel.send("Page.getFrameTree", seconds=ATTACH_SECONDS)
        return cdp.text(tree, "frameTree", "frame", "id")

    async def intercept_file_dialogs(self, enabled: bool) -> None:
        """Let the service answer the file dialogs of the page, or the person at the desktop."""
        for channel in (self._channel, *(channel for _, channel in self._remote.values())):
            await channel.try_send("Page.setInterceptFileChooserDialog", {"enabled": enabled})

    async def main(self) -> IsolatedWorld:
        """Return the world of the tab's main document."""
        return await self._world(self.main_id, self._channel, None)

    def with_element(self, index: int) -> IsolatedWorld | None:
        """Return the world in which the element number `index` was given."""
        return next((each for each in self._worlds.values() if any(index in numbers for numbers in each.numbers)), None)

    def child(self, world: IsolatedWorld, key: int) -> IsolatedWorld | None:
        """Return the world inside the frame element `key` of `world`, as of the last reading."""
        owner = FrameOwner(world, key)
        return next((each for each in self._worlds.values() if each.owner == owner), None)

    async def call_in_focused(self, name: str, *args: object) -> tuple[IsolatedWorld, cdp.Json]:
        """Call a function of the script in the main document; where it returns a frame's key, call it in that frame.

        Return the world of the document in which it was called, and its result.
        """
        world = await self.main()
        for _ in range(MAX_FOCUS_DEPTH):
            answer = await world.call(name, *args)
            if "frame" not in answer:
                return world, answer
            inner = self.child(world, int(cdp.number(answer, "frame")))
            if inner is None:
                break
            world = inner
        return world, {}

    async def children(self, world: IsolatedWorld, keys: Sequence[int]) -> list[IsolatedWorld | None]:
        """Return the worlds inside the frame elements `keys` of `world`; None for a frame that cannot be read."""
        ids = await asyncio.gather(*(self._frame_id(world, key) for key in keys))
        local = await self._local_ids(world.channel)
        if any(each and each not in local and each not in self._remote for each in ids):
            await self._attach_remote_frames()
        return [await self._child(FrameOwner(world, key), each, local) for key, each in zip(keys, ids, strict=True)]

    async def _world(self, frame_id: str, channel: cdp.Channel, owner: FrameOwner | None) -> IsolatedWorld:
        """Return the world of the frame's current document; create it if none responds."""
        known = self._worlds.get(frame_id)
        if known is not None and known.channel is channel:
            try:
                await known.call("isAlive", seconds=FRAME_ALIVE_SECONDS if owner else None)
            except cdp.DocumentGone:
                pass
            else:
                known.owner = owner
                return known
        created = await IsolatedWorld.create(channel, frame_id, owner)
        if frame_id == self.main_id:
            self._worlds.clear()  # they belong to the previous document
        self._worlds[frame_id] = created
        return created

    async def _child(self, owner: FrameOwner, frame_id: str, local: set[str]) -> IsolatedWorld | None:
        if frame_id not in self._remote and frame_id not in local:
            return None
        channel = self._remote[frame_id][1] if frame_id in self._remote else owner.world.channel
        try:
            return await self._world(frame_id, channel, owner)
        except BrowserFailure:  # the frame is gone, or its process hangs or died: the next reading attaches again
            self._remote.pop(frame_id, None)
            return None

    async def _frame_id(self, world: IsolatedWorld, key: int) -> str:
        handle = await world.handle("frameByKey", key)
        if not handle:
            return ""
        return cdp.text(await world.channel.send("DOM.describeNode", {"objectId": handle}), "node", "frameId")

    async def _local_ids(self, channel: cdp.Channel) -> set[str]:
        """Return the ids of the frames in the process of `channel`."""
        found: set[str] = set()
        nodes = [cdp.item(await channel.send("Page.getFrameTree"), "frameTree")]
        while nodes:
            node = nodes.pop()
            found.add(cdp.text(node, "frame", "id"))
            nodes.extend(cdp.items(node, "childFrames"))
        return found

    async def _attach_remote_frames(self) -> None:
        """Open a CDP session with every frame that has a process of its own and no session yet."""
        self._remote = {id: remote for id, remote in self._remote.items() if not remote[0].is_detached()}
        attached = {frame for frame, _ in self._remote.values()}
        frames = [each for each in self._page.frames[1:] if each not in attached][:MAX_REMOTE_FRAMES]
        await asyncio.gather(*(self._attach_remote_frame(frame) for frame in frames))

    async def _attach_remote_frame(self, frame: Frame) -> None:
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                session = await self._page.context.new_cdp_session(frame)
        except (PlaywrightError, TimeoutError):
            return  # the frame shares the process of the frame around it
        channel = cdp.Channel(session, self._channel.lifetime)
        with contextlib.suppress(BrowserFailure):
            self._remote[await self.prepare_channel(channel)] = (frame, channel)


@cache
def read_script(name: str) -> str:
    """Return the text of one of the service's scripts."""
    return (Path(__file__).parent / "javascript" / name).read_text(encoding="utf-8").replace("PROMPTS-", f"{_PROMPTS}-")


@cache
def _world_source() -> str:
    body = "\n".join(read_script(name) for name in ISOLATED_WORLD_SCRIPTS)
    return f'function () {{ "use strict";\n{body}\nreturn {{ api, run }}; }}'
