"""A page's console, and scripts that the model runs in the page."""

import json
from collections.abc import Sequence

from playwright.async_api import Page

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import cdp
from app.infrastructure.browser.frames import read_script
from app.infrastructure.browser.tab import Tab

RUN_SECONDS = 15.0
"""Time limit in seconds for a script, including everything that it awaits."""
MARGIN_SECONDS = 1.0
"""Time in seconds beyond its own limit after which Chromium is no longer waited for."""
CONSOLE_SECONDS = 5.0
"""Time limit in seconds for reading the console."""
MAX_VALUE_CHARS = 10_000
"""Maximum length of a script's value as text."""
MAX_LINES = 200
"""Maximum number of console lines to return."""
MAX_LINE_CHARS = 1_000
"""Maximum length of a console line."""
_OBJECT_GROUP = "anker-script"
_BARE_RETURN = "SyntaxError: Illegal return statement"
"""Chromium's message for a script that it could not compile. An error that a script throws goes on with its stack."""


async def run_script(tab: Tab, javascript: str) -> str:
    """Run `javascript` in the page and return its value, or what it throws, as text. Promises are awaited.

    A script with a `return` outside of functions runs as the body of a function.

    Raises:
        BrowserFailure: The script exceeded the time limit and was stopped.
    """
    evaluation: cdp.Json = {
        "expression": javascript,
        "awaitPromise": True,
        "replMode": True,
        "userGesture": True,
        "includeCommandLineAPI": True,
        "objectGroup": _OBJECT_GROUP,
        "timeout": int(RUN_SECONDS * 1000),
    }
    try:
        answer = await _send_with_limit(tab, "Runtime.evaluate", evaluation)
        if cdp.text(answer, "exceptionDetails", "exception", "description") == _BARE_RETURN:
            # Nothing of it has run. Models write such scripts for drivers that take the body of a function.
            evaluation["expression"] = f"(async () => {{\n{javascript}\n}})()"
            answer = await _send_with_limit(tab, "Runtime.evaluate", evaluation)
        if cdp.text(answer, "result", "subtype") == "promise":
            promise = {"promiseObjectId": cdp.text(answer, "result", "objectId")}
            answer = await _send_with_limit(tab, "Runtime.awaitPromise", promise)
        return _shorten(await _value_as_text(tab, answer), MAX_VALUE_CHARS)
    finally:
        await tab.channel.try_send("Runtime.releaseObjectGroup", {"objectGroup": _OBJECT_GROUP})


async def console_lines(tab: Tab, max_lines: int | None) -> Sequence[str]:
    """Return the newest lines of the page's console, followed by the uncaught errors."""
    lines = await tab.lifetime.run(_recorded_lines(tab.page), seconds=CONSOLE_SECONDS)
    return [_shorten(line, MAX_LINE_CHARS + 1) for line in lines[-min(max_lines or MAX_LINES, MAX_LINES) :]]


async def _recorded_lines(page: Page) -> list[str]:
    """Return what Playwright has recorded since it connected: at most 200 messages and 200 errors."""
    messages = [f"{each.type}: {each.text}" for each in await page.console_messages(filter="all")]
    return messages + [f"uncaught: {each.stack or each.message}" for each in await page.page_errors(filter="all")]


async def _send_with_limit(tab: Tab, method: str, params: cdp.Json) -> cdp.Json:
    """Send a command that returns when the script ends; stop a script that exceeds the time limit."""
    stopped = BrowserFailure(f"The script was ended: it took longer than {RUN_SECONDS:g} s.")
    try:
        return await tab.channel.send(method, params, seconds=RUN_SECONDS + MARGIN_SECONDS)
    except cdp.PageUnresponsive:
        # A script that only waits for a promise must not be stopped: that would stop whatever the page runs next.
        try:
            await tab.channel.send("Runtime.evaluate", {"expression": "0"}, seconds=MARGIN_SECONDS)
        except cdp.PageUnresponsive:
            await tab.stop_script()
        raise stopped from None
    except BrowserFailure as error:
        if "Internal error" in str(error):  # Chromium's message when its own time limit was exceeded
            raise stopped from error
        raise


async def _value_as_text(tab: Tab, answer: cdp.Json) -> str:
    thrown, result = cdp.item(answer, "exceptionDetails"), cdp.item(answer, "result")
    if thrown:
        value = cdp.item(thrown, "exception").get("value", "")
        return f"Error: {cdp.text(thrown, 'exception', 'description') or value or cdp.text(thrown, 'text')}"
    description = cdp.text(result, "description")
    handle = cdp.text(result, "objectId")
    if handle:
        call: cdp.Json = {
            "objectId": handle,
            "functionDeclaration": read_script("value.js"),
            "arguments": [{"value": MAX_VALUE_CHARS}],
            "returnByValue": True,
        }
        converted = await tab.channel.send("Runtime.callFunctionOn", call)
        return description if cdp.item(converted, "exceptionDetails") else cdp.text(converted, "result", "value")
    match result.get("value"):
        case str(value):
            return value
        case value:
            return "undefined" if cdp.text(result, "type") == "undefined" else description or json.dumps(value)


def _shorten(line: str, limit: int) -> str:
    """Return `line`, or its first `limit` - 1 characters and an ellipsis if it is not shorter than `limit`."""
    return line if len(line) < limit else line[: limit - 1] + "…"
