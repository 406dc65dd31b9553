"""Our code inside a page: in a world of its own in every frame, which the page's code can neither see nor change.

A world lives as long as its document. The numbers of elements live in it too, as references to the elements
themselves, so that a number can mean no other element than the one that it was given to.
"""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.channel import Channel, Json, item, items, number, text
from app.infrastructure.browser.failures import ContextGone

PAGE_SCRIPT = "page.js"
"""The only one that runs in the page's own world."""
SCRIPTS = ("dom.js", "elements.js", "markdown.js", "blocks.js", "hands.js")
NAME = "anker"
"""How debuggers show the world."""

# A context's number may be given again to another document of another process: what answers must know the token.
_CALL = (
    "async function (token, name, values) {"
    " const world = globalThis.ankerWorld;"
    " return world?.token === token ? { value: await world.api[name](...values) } : { gone: true }; }"
)
_HANDLE = (
    "function (token, name, values) {"
    " const world = globalThis.ankerWorld;"
    " return world?.token === token ? world.api[name](...values) : null; }"
)
_ADOPT = "function (token, host, root) { globalThis.ankerWorld?.api.adopt(host, root); }"


@dataclass(frozen=True, slots=True)
class Owner:
    """The element that holds a frame: its key in the world of the document around it."""

    world: "World"
    key: int


@dataclass(eq=False, slots=True)
class World:
    """Our code in one document. `owner` is None for a tab's outermost document."""

    channel: Channel
    frame_id: str
    context_id: int
    token: str
    owner: Owner | None = None
    numbers: list[range] = field(default_factory=list[range])
    """The numbers that elements of this document were given."""

    async def call(self, name: str, *values: object, seconds: float | None = None) -> object:
        """What our function `name` answers, by value.

        Raises:
            ContextGone: the document is no longer there.
            TabGone, Hung: see there.
        """
        answer = await self._run(_CALL, name, values, by_value=True, seconds=seconds)
        value = item(answer, "result", "value")
        if value.get("gone"):
            raise ContextGone
        return value.get("value")

    async def ask(self, name: str, *values: object, seconds: float | None = None) -> Json:
        """What our function `name` answers, an object; empty when it answers none."""
        return item({"value": await self.call(name, *values, seconds=seconds)}, "value")

    async def handle(self, name: str, *values: object) -> str:
        """The handle of the object that our function `name` answers; empty when there is none."""
        answer = await self._run(_HANDLE, name, values, by_value=False, seconds=None)
        return text(answer, "result", "objectId")

    async def members(self, name: str, *values: object) -> list[str]:
        """The handles of the objects in the array that our function `name` answers, "" where there is none."""
        array = await self.handle(name, *values)
        if not array:
            raise ContextGone
        answer = await self.channel.send("Runtime.getProperties", {"objectId": array, "ownProperties": True})
        found = [each for each in items(answer, "result") if text(each, "name").isdigit()]
        return [text(each, "value", "objectId") for each in found]

    async def adopt(self, hosts: Sequence[str]) -> int:
        """Learn the closed shadow roots of the elements behind these handles; answers how many there were."""
        return sum(await asyncio.gather(*(self._adopt(host) for host in hosts if host)))

    async def release(self) -> None:
        """Let go of every handle: what a debugger holds is not cleared away when the page drops it."""
        await self.channel.try_send("Runtime.releaseObjectGroup", {"objectGroup": NAME})

    async def _adopt(self, host: str) -> int:
        described = await self.channel.send("DOM.describeNode", {"objectId": host, "depth": 0, "pierce": True})
        roots = [each for each in items(described, "node", "shadowRoots") if text(each, "shadowRootType") == "closed"]
        for root in roots:
            resolved = await self.channel.send(
                "DOM.resolveNode",
                {
                    "backendNodeId": int(number(root, "backendNodeId")),
                    "executionContextId": self.context_id,
                    "objectGroup": NAME,
                },
            )
            handles = [{"value": self.token}, {"objectId": host}, {"objectId": text(resolved, "object", "objectId")}]
            await self.channel.send(
                "Runtime.callFunctionOn",
                {"functionDeclaration": _ADOPT, "executionContextId": self.context_id, "arguments": handles},
            )
        return len(roots)

    async def _run(
        self, function: str, name: str, values: tuple[object, ...], *, by_value: bool, seconds: float | None
    ) -> Json:
        answer = await self.channel.send(
            "Runtime.callFunctionOn",
            {
                "functionDeclaration": function,
                "executionContextId": self.context_id,
                "arguments": [{"value": each} for each in (self.token, name, list(values))],
                "returnByValue": by_value,
                "awaitPromise": True,
                "objectGroup": NAME,
            },
            seconds=seconds,
        )
        if "exceptionDetails" in answer:
            said = text(answer, "exceptionDetails", "exception", "description").partition("\n")[0]
            raise BrowserFailure(f"The page could not be looked into: {said[:200]}")
        return answer


async def make_world(channel: Channel, frame_id: str, owner: Owner | None = None) -> World:
    """Put our code into the document that the frame has now.

    Raises:
        ContextGone: there is no such frame any more.
    """
    made = await channel.send("Page.createIsolatedWorld", {"frameId": frame_id, "worldName": NAME})
    world = World(channel, frame_id, int(number(made, "executionContextId")), secrets.token_hex(16), owner)
    await channel.send(
        "Runtime.callFunctionOn",
        {
            "functionDeclaration": _source(),
            "executionContextId": world.context_id,
            "arguments": [{"value": world.token}],
        },
    )
    return world


def javascript(name: str) -> str:
    """The text of one of our scripts."""
    return (Path(__file__).parent / "javascript" / name).read_text(encoding="utf-8")


@cache
def _source() -> str:
    body = "\n".join(javascript(name) for name in SCRIPTS)
    return f'function (token) {{ "use strict";\n{body}\nglobalThis.ankerWorld = {{ token, api }}; }}'
