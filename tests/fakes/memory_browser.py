"""Implementations of the browser ports in memory, with scripted pages."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.external.browser import Target
from app.domain.models.browser import PageView, Point, ScriptResult

BLANK = PageView(url="about:blank", title="", text="")


@dataclass(slots=True)
class Call:
    """A recorded call: the method's name and its arguments by name."""

    method: str
    args: dict[str, object]


class MemoryBrowser:
    """A `Browser` in memory. Every action returns the next of `pages`; the last one is repeated."""

    def __init__(self, pages: Sequence[PageView] = (BLANK,)) -> None:
        self.pages = list(pages)
        self.calls: list[Call] = []
        self.value = "null"
        """Value of every script."""
        self.lines: tuple[str, ...] = ()
        """Lines of the console."""
        self.failure: BrowserFailure | SandboxUnavailable | None = None
        """The error of every call; None if calls succeed."""
        self.may_return = asyncio.Event()
        """While it is cleared, calls wait."""
        self.may_return.set()
        self.cancelled = 0
        """Number of calls that were cancelled while they waited."""

    async def view(self) -> PageView:
        """Implement `Browser.view`."""
        return await self._page("view")

    async def navigate(self, url: str) -> PageView:
        """Implement `Browser.navigate`."""
        return await self._page("navigate", url=url)

    async def restart(self, url: str) -> PageView:
        """Implement `Browser.restart`."""
        return await self._page("restart", url=url)

    async def click(self, target: Target) -> PageView:
        """Implement `Browser.click`."""
        return await self._page("click", target=target)

    async def input(self, target: Target | None, text: str, *, press_enter: bool) -> PageView:
        """Implement `Browser.input`."""
        return await self._page("input", target=target, text=text, press_enter=press_enter)

    async def move_mouse(self, point: Point) -> PageView:
        """Implement `Browser.move_mouse`."""
        return await self._page("move_mouse", point=point)

    async def press_key(self, key: str) -> PageView:
        """Implement `Browser.press_key`."""
        return await self._page("press_key", key=key)

    async def select_option(self, index: int, option: int) -> PageView:
        """Implement `Browser.select_option`."""
        return await self._page("select_option", index=index, option=option)

    async def scroll(self, *, down: bool, to_end: bool) -> PageView:
        """Implement `Browser.scroll`."""
        return await self._page("scroll", down=down, to_end=to_end)

    async def execute(self, javascript: str) -> ScriptResult:
        """Implement `Browser.execute`."""
        page = await self._page("execute", javascript=javascript)
        return ScriptResult(value=self.value, page=page)

    async def console(self, max_lines: int | None) -> Sequence[str]:
        """Implement `Browser.console`."""
        await self._record("console", max_lines=max_lines)
        return self.lines if max_lines is None else self.lines[-max_lines:]

    async def _page(self, method: str, **args: object) -> PageView:
        await self._record(method, **args)
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]

    async def _record(self, method: str, **args: object) -> None:
        self.calls.append(Call(method, args))
        try:
            await self.may_return.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure


class MemoryBrowsers:
    """The `Browsers` port in memory. `prepare` returns a session's browser before it is opened."""

    def __init__(self) -> None:
        self.browsers: dict[str, MemoryBrowser] = {}
        self.released: list[str] = []
        self.open_error: BrowserFailure | SandboxUnavailable | None = None
        """The error of `open`; None if it succeeds."""
        self.closed = False

    def prepare(self, session_id: str) -> MemoryBrowser:
        """Return the browser that the session will get."""
        return self.browsers.setdefault(session_id, MemoryBrowser())

    async def open(self, session_id: str) -> MemoryBrowser:
        """Implement `Browsers.open`."""
        if self.open_error is not None:
            raise self.open_error
        return self.prepare(session_id)

    async def release(self, session_id: str) -> None:
        """Implement `Browsers.release`."""
        self.released.append(session_id)

    async def close(self) -> None:
        """Implement `Browsers.close`."""
        self.closed = True
