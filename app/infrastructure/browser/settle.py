"""Waiting until a page has answered an action: as short as the page allows, and never without end."""

import time

from app.infrastructure.browser.failures import ContextGone, Hung, TabGone
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.tabs import Tabs

QUIET_MS = 60
"""A document that did not change for so long has answered."""
RESTLESS_MS = 400
"""A document that never stops changing is looked at after so long."""
NETWORK_SECONDS = 1.5
"""For requests that an action set off."""
COMMIT_SECONDS = 15.0
"""For a server to begin to answer a navigation."""
TEXT_SECONDS = 6.0
"""For the text of a page to arrive after that."""
REST_SECONDS = 3.0
"""For screenshots, scripts and frames after that."""
MOST_ROUNDS = 5
"""Of redirections by scripts."""
MOST_SECONDS = 25.0
"""For all of it."""


async def settle(tabs: Tabs, tab: Tab) -> Tab:
    """Wait until `tab`, and a tab that it opened, have answered; answers the tab that is in front then."""
    await _settle_one(tabs, tab)
    await tabs.popped_up()
    if not tabs.changed(tab):
        return tab
    front = await tabs.front()
    await _settle_one(tabs, front)
    return front


async def _settle_one(tabs: Tabs, tab: Tab) -> None:
    end = time.monotonic() + MOST_SECONDS
    for _ in range(MOST_ROUNDS):
        await _load(tabs, tab)
        commits = tab.traffic.commits
        try:
            await _quiet(tab)
        except ContextGone:
            continue
        except (TabGone, Hung):
            return  # whoever looks at the page next finds out what is the matter
        if (tab.traffic.commits == commits and not tab.traffic.navigating) or time.monotonic() > end:
            return


async def _load(tabs: Tabs, tab: Tab) -> None:
    traffic = tab.traffic
    if traffic.navigating and not await traffic.until(lambda: not traffic.navigating, seconds=COMMIT_SECONDS):
        tabs.note(f"The page wanted to go elsewhere, and got no answer within {COMMIT_SECONDS:g} s.")
        await tab.channel.try_send("Page.stopLoading")
        return
    commits = traffic.commits

    def waits() -> bool:
        return traffic.loading and traffic.commits == commits

    if waits() and await traffic.until(lambda: traffic.ready or not waits(), seconds=TEXT_SECONDS):
        await traffic.until(lambda: not waits(), seconds=REST_SECONDS)


async def _quiet(tab: Tab) -> None:
    """Until neither the document nor the network changes, within bounds."""
    traffic = tab.traffic
    end = time.monotonic() + NETWORK_SECONDS
    world = await tab.frames.main()
    await world.call("quiet", QUIET_MS, RESTLESS_MS)
    while traffic.requests and not traffic.navigating and (left := end - time.monotonic()) > 0:
        await traffic.until(lambda: not traffic.requests or traffic.navigating, seconds=left)
        await world.call("quiet", QUIET_MS, RESTLESS_MS)
