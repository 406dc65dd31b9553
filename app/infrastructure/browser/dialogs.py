"""Dialogs of pages (alert, confirm, prompt, beforeunload): answered at once, since a page stands still until then."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from playwright.async_api import Dialog, Page
from playwright.async_api import Error as PlaywrightError

MOST_DIALOGS = 30
WITHIN_SECONDS = 15.0
"""A page that opens more than that many dialogs in this time would never stop; nothing but closing it helps."""
ANSWER_SECONDS = 5.0
MAX_MESSAGE = 300


class Dialogs:
    """Answers the dialogs of all tabs as whoever set off the page wants: with yes, and a prompt with its default."""

    def __init__(self, note: Callable[[str], None], close: Callable[[Page], None]) -> None:
        """`note` is told what was asked and answered; `close` ends a page that asks without end."""
        self._note = note
        self._close = close
        self._times: dict[Page, deque[float]] = {}
        self._answers: set[asyncio.Task[None]] = set()

    def opened(self, dialog: Dialog) -> None:
        """Answer `dialog`."""
        page = dialog.page
        if page is not None and self._is_endless(page):
            self._note("The page opened one dialog after another without end: its tab was closed.")
            self._times.pop(page, None)
            self._close(page)
            return
        self._note(_words(dialog))
        answer = asyncio.ensure_future(_accept(dialog))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    def forget(self, page: Page) -> None:
        """The page is closed."""
        self._times.pop(page, None)

    def _is_endless(self, page: Page) -> bool:
        now = time.monotonic()
        times = self._times.setdefault(page, deque(maxlen=MOST_DIALOGS))
        times.append(now)
        return len(times) == MOST_DIALOGS and now - times[0] < WITHIN_SECONDS


async def _accept(dialog: Dialog) -> None:
    with contextlib.suppress(PlaywrightError, TimeoutError):  # the page may have gone on or away meanwhile
        async with asyncio.timeout(ANSWER_SECONDS):
            await dialog.accept(dialog.default_value if dialog.type == "prompt" else None)


def _words(dialog: Dialog) -> str:
    said = " ".join(dialog.message.split())
    said = said if len(said) <= MAX_MESSAGE else said[:MAX_MESSAGE] + "…"
    match dialog.type:
        case "alert":
            return f"An alert said {said!r}; it was closed."
        case "confirm":
            return f"The page asked {said!r}; it was answered with OK."
        case "prompt":
            return f"The page asked {said!r} for a text; it got {dialog.default_value!r}."
        case _:
            return "The page asked whether to leave it; it was left."
