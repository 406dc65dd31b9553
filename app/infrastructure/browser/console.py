"""JavaScript that the model runs in a page, and the page's console."""

from collections.abc import Sequence
from functools import cache

from playwright.async_api import Page

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.channel import Json, item, text
from app.infrastructure.browser.failures import Hung
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.world import javascript

RUN_SECONDS = 15.0
"""For a script with everything that it awaits."""
MARGIN_SECONDS = 1.0
CONSOLE_SECONDS = 5.0
MAX_VALUE = 10_000
MAX_LINES = 200
MAX_LINE = 1_000
_GROUP = "anker-script"


async def run_script(tab: Tab, javascript: str) -> str:
    """The value of `javascript` in the page, promises awaited, as text; what it throws is a value too.

    Raises:
        BrowserFailure: it does not come to an end; it was ended then.
    """
    question: Json = {
        "expression": javascript,
        "awaitPromise": True,
        "replMode": True,
        "userGesture": True,
        "includeCommandLineAPI": True,
        "objectGroup": _GROUP,
        "timeout": int(RUN_SECONDS * 1000),
    }
    try:
        answer = await _within_limit(tab, "Runtime.evaluate", question)
        if text(answer, "result", "subtype") == "promise":
            promise = text(answer, "result", "objectId")
            answer = await _within_limit(tab, "Runtime.awaitPromise", {"promiseObjectId": promise})
        return await _told(tab, answer)
    finally:
        await tab.channel.try_send("Runtime.releaseObjectGroup", {"objectGroup": _GROUP})


async def _within_limit(tab: Tab, method: str, question: Json) -> Json:
    """The answer of a command that runs until the script ends."""
    ended = BrowserFailure(f"The script was ended: it took longer than {RUN_SECONDS:g} s.")
    try:
        return await tab.channel.send(method, question, seconds=RUN_SECONDS + MARGIN_SECONDS)
    except Hung:
        # What only waits for a promise must not be ended: the end would hit whatever the page runs next.
        try:
            await tab.channel.send("Runtime.evaluate", {"expression": "0"}, seconds=MARGIN_SECONDS)
        except Hung:
            await end_script(tab)
        raise ended from None
    except BrowserFailure as error:
        if "Internal error" in str(error):  # how Chromium puts it that its own time limit was reached
            raise ended from error
        raise


async def end_script(tab: Tab) -> None:
    """End the JavaScript that runs in the page now."""
    await tab.channel.try_send("Runtime.terminateExecution")


async def console_lines(tab: Tab, max_lines: int | None) -> Sequence[str]:
    """What the page's console shows, then the errors that nobody caught; the newest of each are last."""
    messages, errors = await tab.ending.within(_kept(tab.page), seconds=CONSOLE_SECONDS)
    lines = [f"{kind}: {words}" for kind, words in messages] + [f"uncaught: {words}" for words in errors]
    most = min(max_lines or MAX_LINES, MAX_LINES)
    return [line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…" for line in lines[-most:]]


async def _kept(page: Page) -> tuple[list[tuple[str, str]], list[str]]:
    """Playwright's driver keeps the newest 200 of each for every page from the moment that it is connected."""
    messages = [(each.type, each.text) for each in await page.console_messages(filter="all")]
    return messages, [each.stack or each.message for each in await page.page_errors(filter="all")]


async def _told(tab: Tab, answer: Json) -> str:
    thrown = item(answer, "exceptionDetails")
    result = item(answer, "result")
    if thrown:
        words = text(thrown, "exception", "description") or str(item(thrown, "exception").get("value", ""))
        return f"Error: {_cut(words or text(thrown, 'text'))}"
    kind = text(result, "type")
    if kind == "string":
        return _cut(text(result, "value"))
    if kind == "undefined":
        return "undefined"
    handle = text(result, "objectId")
    if not handle:
        return _cut(text(result, "description") or _simple(result.get("value")))
    told = await tab.channel.send(
        "Runtime.callFunctionOn",
        {
            "objectId": handle,
            "functionDeclaration": _teller(),
            "arguments": [{"value": MAX_VALUE}],
            "returnByValue": True,
        },
    )
    if item(told, "exceptionDetails"):
        return _cut(text(result, "description"))
    return _cut(text(told, "result", "value"))


@cache
def _teller() -> str:
    return javascript("value.js")


def _simple(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _cut(words: str) -> str:
    return words if len(words) < MAX_VALUE else words[: MAX_VALUE - 1] + "…"
