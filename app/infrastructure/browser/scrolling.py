"""Scrolling, and waiting for what a page loads at the end of a list."""

import time

from app.infrastructure.browser import cdp
from app.infrastructure.browser.tab import Tab

END_SECONDS = 1.0
"""Time in seconds within which a page that is scrolled at its end starts to load more."""
MORE_SECONDS = 5.0
"""Maximum time in seconds to wait for what a page loads at its end."""
POLL_SECONDS = 0.1
"""Pause in seconds between two looks at the end of a page."""


async def scroll(tab: Tab, *, down: bool, to_end: bool) -> None:
    """Scroll by almost a screen, or to the end. At the lower end, wait for what the page is loading there."""
    moved = await _scroll(tab, down=down, to_end=to_end)
    if not down:
        if not moved:
            tab.note("There is nothing further up.")
        return
    below, loading = await _wait_for_more(tab, seconds=0 if moved else END_SECONDS)
    if below > 0 and (to_end or not moved):
        await _scroll(tab, down=True, to_end=to_end)
        below, loading = await _wait_for_more(tab, seconds=0)
    elif below <= 0 and not moved and not loading:
        tab.note("There is nothing further down.")
    tab.load.counts_between_actions = below <= 0
    if below <= 0 and loading:
        tab.note("The page is still loading more here: scroll down again in a moment.")


async def _scroll(tab: Tab, *, down: bool, to_end: bool) -> bool:
    """Scroll once. Return whether anything moved."""
    _, answer = await tab.frames.call_in_focused("scroll", down, to_end)
    return cdp.number(answer, "moved") != 0


async def _wait_for_more(tab: Tab, *, seconds: float) -> tuple[float, bool]:
    """Wait while the lower end of the page is being loaded, for at most `MORE_SECONDS`.

    Args:
        tab: The tab in front.
        seconds: How long to wait for a sign that something is being loaded.

    Returns:
        The number of pixels that are left below, and whether the end is still being loaded.
    """
    start = time.monotonic()
    while True:
        await tab.load.wait_for_quiet()
        _, state = await tab.frames.call_in_focused("scrollState")
        below, loading = cdp.number(state, "below"), state.get("loading") is True or tab.load.has_requests
        if below > 0 or time.monotonic() - start > (MORE_SECONDS if loading else seconds):
            return below, loading
        await tab.load.wait_until(lambda: False, seconds=POLL_SECONDS)
