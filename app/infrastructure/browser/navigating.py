"""Going to another page: by URL, through the history, or again."""

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.addresses import shown_url
from app.infrastructure.browser.channel import Json, items, number, text
from app.infrastructure.browser.failures import Hung, TabGone, net_failure
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.tabs import Tabs

COMMIT_SECONDS = 20.0
"""For a server to begin to answer."""
HISTORY_SECONDS = 15.0
NETWORK_TRIES = 3
_TRY_OTHER_SCHEME = (
    "ERR_CONNECTION",
    "ERR_SSL_PROTOCOL_ERROR",
    "ERR_EMPTY_RESPONSE",
    "ERR_TIMED_OUT",
    "ERR_ADDRESS_UNREACHABLE",
    "ERR_INVALID_HTTP_RESPONSE",
)
_NOTHING_TO_SHOW = "ERR_ABORTED"
_NETWORK_CHANGED = "ERR_NETWORK_CHANGED"


async def go(tabs: Tabs, tab: Tab, urls: tuple[str, ...], home: str) -> tuple[Tab, bool]:
    """Open the first of `urls` that answers; answers the tab that it is open in, and whether it is a download instead.
    `home` is the workspace.

    Raises:
        BrowserFailure: none does; the words are about the last.
    """
    for url in urls[:-1]:
        tab, answer = await _open(tabs, tab, url)
        if not any(each in text(answer, "errorText") for each in _TRY_OTHER_SCHEME):
            return tab, _outcome(tabs, answer, shown_url(url, home))
    tab, answer = await _open(tabs, tab, urls[-1])
    return tab, _outcome(tabs, answer, shown_url(urls[-1], home))


async def back_or_forward(tab: Tab, step: int) -> None:
    """Go `step` pages through the tab's history.

    Raises:
        BrowserFailure: there is no such page.
    """
    history = await tab.channel.send("Page.getNavigationHistory")
    wanted = int(number(history, "currentIndex")) + step
    entries = items(history, "entries")
    if not 0 <= wanted < len(entries):
        raise BrowserFailure(f"There is no page to go {'back' if step < 0 else 'forward'} to.", status=409)
    commits = tab.traffic.commits
    entry = int(number(entries[wanted], "id"))
    await tab.channel.send("Page.navigateToHistoryEntry", {"entryId": entry}, seconds=HISTORY_SECONDS)
    # The command answers before anything happens. Within one document nothing but the URL changes.
    await tab.traffic.until(lambda: tab.traffic.navigating or tab.traffic.commits > commits, seconds=0.5)


async def reload(tab: Tab) -> None:
    """Load the page again."""
    commits = tab.traffic.commits
    await tab.channel.send("Page.reload", seconds=HISTORY_SECONDS)
    await tab.traffic.until(lambda: tab.traffic.commits > commits, seconds=HISTORY_SECONDS)


async def _open(tabs: Tabs, tab: Tab, url: str) -> tuple[Tab, Json]:
    """The tab, and what Chromium answers; asked again when the machine's network changed under it."""
    for _ in range(NETWORK_TRIES):
        tab, answer = await _ask(tabs, tab, url)
        if _NETWORK_CHANGED not in text(answer, "errorText"):
            return tab, answer
    return await _ask(tabs, tab, url)


async def _ask(tabs: Tabs, tab: Tab, url: str) -> tuple[Tab, Json]:
    try:
        return tab, await tab.channel.send("Page.navigate", {"url": url}, seconds=COMMIT_SECONDS)
    except Hung:
        await tab.channel.try_send("Page.stopLoading")
        if await _is_alive(tab):
            raise BrowserFailure(f"{url} did not answer within {COMMIT_SECONDS:g} s.") from None
    tabs.note("The page before did not respond any more: its tab was closed.")
    tab = await tabs.replace(tab)
    return tab, await tab.channel.send("Page.navigate", {"url": url}, seconds=COMMIT_SECONDS)


def _outcome(tabs: Tabs, answer: Json, url: str) -> bool:
    """Whether a download came instead of a page. Raises BrowserFailure when nothing came."""
    if answer.get("isDownload"):
        return True
    problem = text(answer, "errorText")
    if _NOTHING_TO_SHOW in problem:
        tabs.note("The server answered with nothing to show: the page is the one before.")
    elif problem:
        raise net_failure(problem, url)
    return False


async def _is_alive(tab: Tab) -> bool:
    try:
        await (await tab.frames.main()).call("alive", seconds=2)
    except (Hung, TabGone):
        return False
    except BrowserFailure:
        return True
    return True
