"""Browsers in memory: scripted pages, for tests of whatever uses a browser."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.external.browser import Target
from app.domain.models.browser import PageView, Point, ScriptResult

BLANK = PageView(url="about:blank", title="", text="")


@dataclass(slots=True)
class Call:
    """One call on a browser: the method's name and its arguments by name."""

    method: str
    args: dict[str, object]


class MemoryBrowser:
    """`Browser` in memory: every action answers the next of `pages`, and the last of them for ever."""

    def __init__(self, pages: Sequence[PageView] = (BLANK,)) -> None:
        self.pages = list(pages)
        self.calls: list[Call] = []
        self.value = "null"
        """What JavaScript gives."""
        self.lines: tuple[str, ...] = ()
        """The console."""
        self.failure: BrowserFailure | SandboxUnavailable | None = None
        """When set, every call fails with it."""
        self.may_answer = asyncio.Event()
        """Cleared, calls hang until it is set."""
        self.may_answer.set()
        self.cancelled = 0

    async def view(self) -> PageView:
        return await self._page("view")

    async def navigate(self, url: str) -> PageView:
        return await self._page("navigate", url=url)

    async def restart(self, url: str) -> PageView:
        return await self._page("restart", url=url)

    async def click(self, target: Target) -> PageView:
        return await self._page("click", target=target)

    async def input(self, target: Target | None, text: str, *, press_enter: bool) -> PageView:
        return await self._page("input", target=target, text=text, press_enter=press_enter)

    async def move_mouse(self, point: Point) -> PageView:
        return await self._page("move_mouse", point=point)

    async def press_key(self, key: str) -> PageView:
        return await self._page("press_key", key=key)

    async def select_option(self, index: int, option: int) -> PageView:
        return await self._page("select_option", index=index, option=option)

    async def scroll(self, *, down: bool, to_end: bool) -> PageView:
        return await self._page("scroll", down=down, to_end=to_end)

    async def execute(self, javascript: str) -> ScriptResult:
        page = await self._page("execute", javascript=javascript)
        return ScriptResult(value=self.value, page=page)

    async def console(self, max_lines: int | None) -> Sequence[str]:
        await self._called("console", max_lines=max_lines)
        return self.lines if max_lines is None else self.lines[-max_lines:]

    async def _page(self, method: str, **args: object) -> PageView:
        await self._called(method, **args)
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]

    async def _called(self, method: str, **args: object) -> None:
        self.calls.append(Call(method, args))
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure


class MemoryBrowsers:
    """`Browsers` in memory. `prepare` gives a session's browser its script before it is opened."""

    def __init__(self) -> None:
        self.browsers: dict[str, MemoryBrowser] = {}
        self.released: list[str] = []
        self.refusal: BrowserFailure | SandboxUnavailable | None = None
        """When set, none can be opened."""
        self.closed = False

    def prepare(self, session_id: str) -> MemoryBrowser:
        """The browser that the session will get."""
        return self.browsers.setdefault(session_id, MemoryBrowser())

    async def open(self, session_id: str) -> MemoryBrowser:
        if self.refusal is not None:
            raise self.refusal
        return self.prepare(session_id)

    async def release(self, session_id: str) -> None:
        self.released.append(session_id)

    async def close(self) -> None:
        self.closed = True
