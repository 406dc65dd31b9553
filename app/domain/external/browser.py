"""Ports: one session's browser, and the browsers of all sessions."""

from collections.abc import Sequence
from typing import Protocol

from app.domain.models.browser import PageView, Point, ScriptResult

Target = int | Point
"""An interactive element, by its number in the newest `PageView`, or a point of the viewport."""


class Browser(Protocol):
    """The browser in one session's sandbox. Every action returns the page as it is afterwards.

    Every method raises:
        BrowserFailure: The action is impossible; the message tells the model what to do (a stale number, no such
            option, no browser in this sandbox).
        SandboxUnavailable: The browser or its sandbox does not respond.
    """

    async def view(self) -> PageView:
        """Return the page in front."""
        ...

    async def navigate(self, url: str) -> PageView:
        """Open `url` in the tab in front. A page that never finishes loading is returned as far as it has loaded."""
        ...

    async def restart(self, url: str) -> PageView:
        """Restart the browser and open `url`."""
        ...

    async def click(self, target: Target) -> PageView:
        """Click `target`."""
        ...

    async def input(self, target: Target | None, text: str, *, press_enter: bool) -> PageView:
        """Replace the text of `target`; None types where the focus is. A file field takes the path of a file."""
        ...

    async def move_mouse(self, point: Point) -> PageView:
        """Move the pointer to `point`."""
        ...

    async def press_key(self, key: str) -> PageView:
        """Press a key or a key combination, such as `Enter` or `Control+a`."""
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
        """Return the newest lines of the page's console, including uncaught errors."""
        ...


class Browsers(Protocol):
    """Connects to the browsers of sandboxes, with at most one connection per session."""

    async def open(self, session_id: str) -> Browser:
        """Return the session's browser; start the session's sandbox if it has none.

        The first action connects, so that a browser that does not respond can still be restarted.

        Raises:
            SandboxUnavailable: No sandbox is available; the message says why.
        """
        ...

    async def release(self, session_id: str) -> None:
        """Close the session's connection, if there is one. The browser continues to run. Idempotent."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
