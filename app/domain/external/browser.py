"""Ports: a session's browser, and whoever connects to it."""

from collections.abc import Sequence
from typing import Protocol

from app.domain.models.browser import PageView, Point, ScriptResult

Target = int | Point
"""An interactive element by the index that the newest `PageView` gave it, or a point of the viewport."""


class Browser(Protocol):
    """The browser in one session's sandbox. Every action answers the page as it is afterwards.

    Raises (every method):
        BrowserFailure: it could not be done, with words that the model can act on (a stale index, no such option, no
            browser in this sandbox).
        SandboxUnavailable: the browser or its sandbox does not answer.
    """

    async def view(self) -> PageView:
        """The page that is in front."""
        ...

    async def navigate(self, url: str) -> PageView:
        """Open `url` in the tab that is in front; a page that never finishes loading is shown as far as it is."""
        ...

    async def restart(self, url: str) -> PageView:
        """Start the browser anew, with `url` open."""
        ...

    async def click(self, target: Target) -> PageView:
        """Click."""
        ...

    async def input(self, target: Target | None, text: str, *, press_enter: bool) -> PageView:
        """Replace the text of an element (None: type where the focus is). A file input takes the path of a file."""
        ...

    async def move_mouse(self, point: Point) -> PageView:
        """Move the pointer."""
        ...

    async def press_key(self, key: str) -> PageView:
        """Press a key, or several at once: `Enter`, `Control+a`."""
        ...

    async def select_option(self, index: int, option: int) -> PageView:
        """Choose option number `option` (from 0) of the select box `index`."""
        ...

    async def scroll(self, *, down: bool, to_end: bool) -> PageView:
        """Scroll by almost a screen, or to the end of the page."""
        ...

    async def execute(self, javascript: str) -> ScriptResult:
        """Run `javascript` in the page, as in its console."""
        ...

    async def console(self, max_lines: int | None) -> Sequence[str]:
        """The newest lines of the page's console, errors that nobody caught among them."""
        ...


class Browsers(Protocol):
    """Connects to the browsers of sandboxes: one connection a session at most."""

    async def open(self, session_id: str) -> Browser:
        """The session's browser; its sandbox is started first when it has none.

        The first call on it connects, so that a browser that does not answer can still be restarted.

        Raises:
            SandboxUnavailable: no sandbox can be had; says why.
        """
        ...

    async def release(self, session_id: str) -> None:
        """Let go of the session's connection, if there is one; the browser goes on. Idempotent."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...
