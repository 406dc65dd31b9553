"""Actions on a page: navigation, mouse, keyboard, form fields and file uploads.

The script `input.js` decides whether an element can be used; it refuses with the message that the model reads.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import cast

from app.domain.errors import BrowserFailure, SandboxFailure
from app.domain.external.browser import Target
from app.domain.external.sandbox import Sandbox
from app.domain.models.browser import Point
from app.infrastructure.browser import cdp
from app.infrastructure.browser.connection import Connection
from app.infrastructure.browser.editors import Editor
from app.infrastructure.browser.frames import FrameOwner, IsolatedWorld
from app.infrastructure.browser.model_input import shown_path, shown_url, workspace_path
from app.infrastructure.browser.tab import FileField, Tab
from app.infrastructure.browser.tabs import Tabs

NAVIGATE_SECONDS = 20.0
"""Time limit in seconds for a server's first response to a navigation."""
HISTORY_SECONDS = 15.0
"""Time limit in seconds for going back or forward, and for a reload."""
HISTORY_START_SECONDS = 0.5
"""Time in seconds within which a navigation through the history starts, unless it stays in the same document."""
ALIVE_SECONDS = 2.0
"""Time limit in seconds for a page to respond after a navigation failed."""
MAX_NETWORK_RETRIES = 3
"""Maximum number of retries after the machine's network changed during a navigation."""
MAX_TYPED_CHARS = 100
"""Maximum length of a text that is typed key by key; of a longer one only the last character is."""
TYPE_SECONDS = 10.0
"""Time limit in seconds for typing a text."""
MAX_MOVE_KEYS = 400
"""Maximum number of keys that are pressed at once to move a slider or spinbutton."""
MAX_MOVES = 8
"""Maximum number of moves of a slider or spinbutton. Those with equal steps need two or three."""

_TRY_OTHER_SCHEME = (
    "ERR_CONNECTION",
    "ERR_SSL_PROTOCOL_ERROR",
    "ERR_EMPTY_RESPONSE",
    "ERR_TIMED_OUT",
    "ERR_ADDRESS_UNREACHABLE",
    "ERR_INVALID_HTTP_RESPONSE",
)
"""Parts of Chromium's network errors after which the next candidate URL is tried."""


async def open_url(connection: Connection, tab: Tab, urls: tuple[str, ...]) -> tuple[Tab, bool]:
    """Open the first of `urls` whose server responds.

    Args:
        connection: The connection to the browser.
        tab: The tab in front.
        urls: The candidates, in order.

    Returns:
        The tab with the page (a new one if `tab` did not respond), and whether a download came instead of a page.

    Raises:
        BrowserFailure: No server responded; the message is about the last URL.
    """
    left, retries = list(urls), MAX_NETWORK_RETRIES
    while True:
        tab, answer = await _navigate(connection.tabs, tab, left[0])
        error = cdp.text(answer, "errorText")
        if "ERR_NETWORK_CHANGED" in error and retries:
            retries -= 1
        elif len(left) > 1 and any(each in error for each in _TRY_OTHER_SCHEME):
            left.pop(0)
        else:
            break
    if answer.get("isDownload"):
        return tab, True
    if "ERR_ABORTED" in error:
        tab.note("The server's response has nothing to show: this is the previous page.")
    elif error:
        raise cdp.net_failure(error, shown_url(left[0], connection.home))
    return tab, False


async def go_through_history(tab: Tab, step: int) -> None:
    """Go `step` pages forward, or back if it is negative.

    Raises:
        BrowserFailure: There is no such page.
    """
    history = await tab.channel.send("Page.getNavigationHistory")
    position = int(cdp.number(history, "currentIndex")) + step
    entries = cdp.items(history, "entries")
    if not 0 <= position < len(entries):
        raise BrowserFailure(f"There is no page to go {'back' if step < 0 else 'forward'} to.", status=cdp.CONFLICT)
    documents = tab.load.document_count
    entry = {"entryId": int(cdp.number(entries[position], "id"))}
    await tab.channel.send("Page.navigateToHistoryEntry", entry, seconds=HISTORY_SECONDS)
    # The command returns before the navigation starts. Within one document only the URL changes.
    await tab.load.wait_until(
        lambda: tab.load.is_navigating or tab.load.document_count > documents, seconds=HISTORY_START_SECONDS
    )


async def reload(tab: Tab) -> None:
    """Load the page again."""
    documents = tab.load.document_count
    await tab.channel.send("Page.reload", seconds=HISTORY_SECONDS)
    await tab.load.wait_until(lambda: tab.load.document_count > documents, seconds=HISTORY_SECONDS)


async def click(tab: Tab, target: Target) -> None:
    """Click an element or a point.

    Raises:
        BrowserFailure: It cannot be clicked; says why.
    """
    if isinstance(target, Point):
        await _check_in_viewport(tab, target)
        point = target
    else:
        point = await _locate(tab, target, for_click=True)
    tab.file_chooser = None
    await tab.lifetime.run(tab.page.mouse.click(point.x, point.y))


async def move_mouse(tab: Tab, point: Point) -> None:
    """Move the pointer to `point`."""
    await _check_in_viewport(tab, point)
    await tab.lifetime.run(tab.page.mouse.move(point.x, point.y))


async def press(tab: Tab, keys: str) -> None:
    """Press a key or a key combination in Playwright's notation.

    Raises:
        BrowserFailure: There is no such key.
    """
    try:
        await tab.lifetime.run(tab.page.keyboard.press(keys))
    except BrowserFailure as error:
        if "unknown key" not in str(error).lower():
            raise
        if len(keys) > 1:
            raise BrowserFailure(f"There is no key {keys!r}. Keys are named as in Enter, ArrowDown, a, F5.") from error
        await tab.lifetime.run(tab.page.keyboard.insert_text(keys))  # a letter that is not on this keyboard


async def fill(tab: Tab, target: Target | None, value: str) -> None:
    """Replace the text of an element, or of what is at a point. With None, type where the focus is.

    Raises:
        BrowserFailure: Nothing can be typed there; says what to do instead.
    """
    if isinstance(target, int):
        await _fill_element(tab, target, value)
        return
    replace = target is not None
    if target is not None:
        await (await tab.frames.main()).call("checkPoint", target.x, target.y)
        await click(tab, target)
    try:
        world, focus = await tab.frames.call_in_focused("prepareFocus", replace)
    except BrowserFailure as error:
        done = "The point was clicked, and nothing was typed: " if replace else ""
        raise BrowserFailure(f"{done}{error}", status=error.status) from error
    if kind := cdp.text(focus, "editor"):
        editor = Editor(tab, world, None, kind == "code")
        await (editor.replace(value) if replace else editor.insert(value))
        return
    await _type(tab, value, multiline=focus.get("multiline") is not False, replace=replace)


async def choose_option(tab: Tab, index: int, option: int) -> None:
    """Choose option number `option` of a select box; in one that takes several, toggle the option.

    Raises:
        BrowserFailure: There is no such option, or it cannot be chosen.
    """
    await _call_on_element(tab, index, "chooseOption", option)


async def file_field(tab: Tab, target: Target | None) -> FileField | None:
    """Return the file field for which text for `target` is a path; None if the text is not a path.

    The field is `target` itself, or the one for which the page has just asked for a file.
    """
    if isinstance(target, Point):
        return None
    if target is not None:
        kind = cdp.text(await _call_on_element(tab, target, "fieldKind"), "kind")
        if kind == "file":
            world = _world_of(tab, target)
            if not (handle := await world.handle("elementByNumber", target)):
                raise cdp.no_element(target)
            return world.channel, {"objectId": handle}
        if kind != "other":
            return None
    return tab.file_chooser


async def upload(tab: Tab, field: FileField, paths: str, sandbox: Sandbox) -> None:
    """Give files to a file field.

    Args:
        tab: The tab in front.
        field: The field, as `file_field` returns it.
        paths: The paths of the files, one per line.
        sandbox: The sandbox that has the files.

    Raises:
        BrowserFailure: There is no such file, or the field takes one only.
        SandboxUnavailable: The sandbox did not respond.
    """
    home = sandbox.browser.home
    files = [workspace_path(line, home) for line in paths.splitlines() if line.strip()]
    if not files:
        raise BrowserFailure("Give the path of the file.")
    channel, node = field
    # The list has the name and the value of each attribute, in turn.
    names = cast("list[str]", cdp.item(await channel.send("DOM.describeNode", node), "node").get("attributes"))[::2]
    kind = "folder" if "webkitdirectory" in names else "file"
    if len(files) > 1 and (kind == "folder" or "multiple" not in names):
        raise BrowserFailure(f"This field takes one {kind} only. Nothing was changed.", status=cdp.CONFLICT)
    for file in files:
        await _check_path(sandbox, file, shown_path(file, home), kind)
    if kind == "file":
        await _check_readable(tab, files, home)
    await channel.send("DOM.setFileInputFiles", {"files": files, **node})
    tab.file_chooser = None


async def _navigate(tabs: Tabs, tab: Tab, url: str) -> tuple[Tab, cdp.Json]:
    """Navigate `tab`, or a blank tab in its place if it does not respond. Return the tab and Chromium's result."""
    try:
        return tab, await tab.channel.send("Page.navigate", {"url": url}, seconds=NAVIGATE_SECONDS)
    except cdp.PageUnresponsive:
        await tab.channel.try_send("Page.stopLoading")
        if await _is_alive(tab):
            raise BrowserFailure(f"{url} did not answer within {NAVIGATE_SECONDS:g} s.") from None
    tabs.note("The previous page no longer responded: its tab was closed.")
    tab = await tabs.replace(tab)
    return tab, await tab.channel.send("Page.navigate", {"url": url}, seconds=NAVIGATE_SECONDS)


async def _is_alive(tab: Tab) -> bool:
    try:
        await (await tab.frames.main()).call("isAlive", seconds=ALIVE_SECONDS)
    except BrowserFailure as error:
        return not isinstance(error, cdp.PageUnresponsive | cdp.TabGone)
    return True


async def _fill_element(tab: Tab, index: int, value: str) -> None:
    field = await _call_on_element(tab, index, "setValue", value)
    if field.get("isSet"):
        _note_state(tab, field)
        return
    if field.get("isMoved"):
        await _move_with_keys(tab, index, wanted=cdp.number(field, "wanted"))
        return
    point = await _locate(tab, index, for_click=False)  # refuses an element that is covered or not visible
    kind = cdp.text(await _call_on_element(tab, index, "editorKind"), "kind")
    if kind:
        await tab.lifetime.run(tab.page.mouse.click(point.x, point.y))
        await Editor(tab, _world_of(tab, index), index, kind == "code").replace(value)
        return
    await _call_on_element(tab, index, "focusAndSelect")
    typed = await _type(tab, value, multiline=field.get("multiline") is True, replace=True)
    if (world := tab.frames.with_element(index)) is not None:
        with contextlib.suppress(cdp.DocumentGone):  # typing may have navigated
            _note_state(tab, await world.call("typedState", index, typed))


async def _move_with_keys(tab: Tab, index: int, *, wanted: float) -> None:
    """Move a slider or spinbutton that the page draws itself, and that has the focus, with the arrow keys."""
    value = cdp.number(await _call_on_element(tab, index, "movedValue"), "value")
    step = 0.0
    for _ in range(MAX_MOVES):
        count = min(math.ceil(abs(wanted - value) / step - 0.5), MAX_MOVE_KEYS) if step else int(value != wanted)
        for _ in range(count):
            await tab.lifetime.run(tab.page.keyboard.press("ArrowUp" if wanted > value else "ArrowDown"))
        before, value = value, cdp.number(await _call_on_element(tab, index, "movedValue"), "value")
        if value == before:  # it is as near as it gets, or ignores the keys
            break
        step = abs(value - before) / count
    if not step and value != wanted:
        raise BrowserFailure(f"[{index}] ignores the arrow keys: it stays at {value:g}.", status=cdp.CONFLICT)
    if value != wanted:
        tab.note(f"[{index}] is at {value:g} now: the arrow keys bring it no nearer to {wanted:g}.")


def _note_state(tab: Tab, answer: cdp.Json) -> None:
    if state := cdp.text(answer, "state"):
        tab.note(state)


async def _type(tab: Tab, value: str, *, multiline: bool, replace: bool) -> str:
    """Type over the selection and return the text that was typed.

    Line breaks are inserted as text, because Enter would submit a form.
    """
    value = value.replace("\r\n", "\n") if multiline else " ".join(value.splitlines())
    keyboard = tab.page.keyboard
    if not value:
        if replace:
            await tab.lifetime.run(keyboard.press("Delete"))
        return value
    if len(value) <= MAX_TYPED_CHARS and "\n" not in value and "\t" not in value:
        await tab.lifetime.run(keyboard.type(value), seconds=TYPE_SECONDS)
        return value
    # A page that follows keystrokes (suggestions, a character counter) needs at least one.
    last = value[-1] if value[-1].isprintable() else ""
    await tab.lifetime.run(keyboard.insert_text(value[: len(value) - len(last)]), seconds=TYPE_SECONDS)
    if last:
        await tab.lifetime.run(keyboard.type(last))
    return value


async def _locate(tab: Tab, index: int, *, for_click: bool) -> Point:
    """Scroll an element into view. Return a point of it, in the viewport, that nothing covers."""
    world = _world_of(tab, index)
    owners: list[FrameOwner] = []
    """The frame elements around the element's document, the innermost first."""
    while (owner := (owners[-1].world if owners else world).owner) is not None:
        owners.append(owner)
    try:
        for owner in reversed(owners):
            await owner.world.call("scrollFrameIntoView", owner.key)
        point = await world.call("locate", index, for_click)
        for owner in owners:
            x, y = cdp.number(point, "x"), cdp.number(point, "y")
            point = await owner.world.call("pointThroughFrame", owner.key, x, y, index)
    except cdp.DocumentGone:
        raise cdp.no_element(index) from None
    return Point(x=cdp.number(point, "x"), y=cdp.number(point, "y"))


async def _check_in_viewport(tab: Tab, point: Point) -> None:
    size = await (await tab.frames.main()).call("viewportSize")
    width, height = cdp.number(size, "width"), cdp.number(size, "height")
    if not (0 <= point.x < width and 0 <= point.y < height):
        raise BrowserFailure(
            f"({point.x:g}, {point.y:g}) is outside the viewport, which is {width:g} x {height:g} pixels."
        )


def _world_of(tab: Tab, index: int) -> IsolatedWorld:
    world = tab.frames.with_element(index)
    if world is None:
        raise cdp.no_element(index)
    return world


async def _call_on_element(tab: Tab, index: int, name: str, *args: object) -> cdp.Json:
    """Call a function of the script on an element; raise `no_element` if the element or its document is gone."""
    try:
        return await _world_of(tab, index).call(name, index, *args)
    except cdp.DocumentGone:
        raise cdp.no_element(index) from None


async def _check_readable(tab: Tab, files: Sequence[str], home: str) -> None:
    """Raise BrowserFailure if the browser, which runs as another user, cannot read a file."""
    world = await tab.frames.main()
    probe = {"objectId": await world.handle("fileProbe")}
    await world.channel.send("DOM.setFileInputFiles", {"files": files, **probe})
    unreadable = (await world.call("unreadableFiles")).get("unreadable")
    if isinstance(unreadable, list) and unreadable:
        paths = [shown_path(files[int(cast("float", each))], home) for each in cast("list[object]", unreadable)]
        raise BrowserFailure(f"The browser, another user, cannot read {', '.join(paths)}: chmod a+r, or copy it.")


async def _check_path(sandbox: Sandbox, path: str, shown: str, kind: str) -> None:
    """Raise BrowserFailure if there is no such `kind` (file or folder): Chromium accepts a path that does not exist."""
    try:
        if kind == "folder":
            await sandbox.file_find(path, "*")
        else:
            await sandbox.file_read(path, start=0, end=1, sudo=False)
    except SandboxFailure as error:
        if kind == "folder" or error.status == cdp.NOT_FOUND or "folder" in str(error):
            raise BrowserFailure(f"There is no {kind} {shown}.", status=cdp.NOT_FOUND) from error
        # any other failure means that the file exists and is not text
