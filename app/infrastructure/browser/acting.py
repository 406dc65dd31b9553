"""What a person does with mouse and keyboard."""

from collections.abc import Coroutine
from typing import TypeVar

from app.domain.errors import BrowserFailure
from app.domain.external.browser import Target
from app.domain.models.browser import Point
from app.infrastructure.browser import channel
from app.infrastructure.browser.channel import Json, number, text
from app.infrastructure.browser.failures import CONFLICT, NOT_FOUND, gone
from app.infrastructure.browser.reach import ask, check_point, place_of, world_of
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.world import World

MOST_KEYSTROKES = 100
"""Characters that are typed one by one, as a person would; of a longer text only the last is."""
KEYS_SECONDS = 10.0

T = TypeVar("T")


async def click(tab: Tab, target: Target) -> None:
    """Click an element or a point.

    Raises:
        BrowserFailure: it cannot be clicked, and why.
    """
    if isinstance(target, Point):
        await check_point(tab, target)
        await _click_at(tab, target)
        return
    place, kind = await place_of(tab, target)
    if kind == "select":
        raise BrowserFailure(f"[{target}] is a select box: choose with browser_select_option.")
    await _click_at(tab, place)


async def move_mouse(tab: Tab, point: Point) -> None:
    """Move the pointer."""
    await check_point(tab, point)
    await _within(tab, tab.page.mouse.move(point.x, point.y))


async def press(tab: Tab, keys: str) -> None:
    """Press one key or several at once.

    Raises:
        BrowserFailure: there is no such key.
    """
    try:
        await _within(tab, tab.page.keyboard.press(keys))
    except BrowserFailure as error:
        if "unknown key" not in str(error).lower():
            raise
        if len(keys) > 1:
            raise BrowserFailure(f"There is no key {keys!r}. Keys are named as in Enter, ArrowDown, a, F5.") from error
        await _within(tab, tab.page.keyboard.insert_text(keys))  # a letter that no key of this keyboard has


async def fill(tab: Tab, target: Target | None, words: str) -> None:
    """Replace the text of an element; with a point, of what is there; with None, type where the focus is.

    Raises:
        BrowserFailure: nothing can be typed there, and what to do instead.
    """
    if isinstance(target, int):
        await _fill_element(tab, target, words)
        return
    if target is not None:
        await click(tab, target)
    focus = await _hold_focus(await tab.frames.main(), tab, clear=target is not None)
    if target is not None and text(focus, "way") not in ("type", "none"):
        raise _refusal(text(focus, "way"), text(focus, "role"), focus)
    await _type(tab, words, lines=bool(focus.get("lines", True)), clear=target is not None)


async def choose(tab: Tab, index: int, option: int) -> None:
    """Choose option number `option` of a select box; in one that takes several, the option is toggled.

    Raises:
        BrowserFailure: there is no such option, or it cannot be chosen.
    """
    found = await ask(world_of(tab, index), index, "select", option)
    match text(found, "state"):
        case "done":
            return
        case "gone":
            raise gone(index)
        case "other":
            raise BrowserFailure(f"[{index}] is no select box but {text(found, 'is')}: click it.")
        case "missing":
            count = int(number(found, "count"))
            last = f"its options are 0 to {count - 1}" if count else "it has none"
            raise BrowserFailure(f"[{index}] has no option {option}: {last}.", status=NOT_FOUND)
        case _:
            raise BrowserFailure(f"Option {option} of [{index}] is disabled.", status=CONFLICT)


async def scroll(tab: Tab, *, down: bool, to_end: bool) -> bool:
    """Scroll; whether anything moved."""
    world = await tab.frames.main()
    for _ in range(4):
        moved = await world.ask("scroll", down, to_end)
        if "frame" not in moved:
            return number(moved, "moved") != 0
        inner = tab.frames.child(world, int(number(moved, "frame")))
        if inner is None:
            return False
        world = inner
    return False


async def _fill_element(tab: Tab, index: int, words: str) -> None:
    world = world_of(tab, index)
    how = await ask(world, index, "wayIn")
    match text(how, "way"):
        case "gone":
            raise gone(index)
        case "set":
            done = await ask(world, index, "set", words)
            if text(done, "value") != words.strip():
                raise BrowserFailure(f"[{index}] did not take {words!r}: it wants {text(how, 'format')}.")
        case "type":
            await place_of(tab, index)  # says so when it cannot be seen or is covered
            if not await world.call("hold", index):
                raise gone(index)
            await _type(tab, words, lines=how.get("lines") is True, clear=True)
        case way:
            raise _refusal(way, text(how, "role"), how)


async def _type(tab: Tab, words: str, *, lines: bool, clear: bool) -> None:
    """Type over what is selected. Enter is no part of a text: in a field of several lines breaks are put in as text."""
    words = words.replace("\r\n", "\n") if lines else " ".join(words.splitlines())
    if not words:
        if clear:
            await _within(tab, tab.page.keyboard.press("Delete"))
        return
    keyboard = tab.page.keyboard
    plain = not any(each in words for each in "\n\t")
    if plain and len(words) <= MOST_KEYSTROKES:
        await _within(tab, keyboard.type(words), seconds=KEYS_SECONDS)
        return
    # Pages that follow keystrokes (a search that suggests, a counter) hear at least the last one.
    typed = words[-1] if words[-1].isprintable() else ""
    await _within(tab, keyboard.insert_text(words[: len(words) - len(typed)]), seconds=KEYS_SECONDS)
    if typed:
        await _within(tab, keyboard.type(typed))


async def _hold_focus(world: World, tab: Tab, *, clear: bool) -> Json:
    """What has the focus, within frames too; with `clear` its text is selected."""
    for _ in range(4):
        focus = await world.ask("holdFocus", clear)
        if "frame" not in focus:
            return focus
        inner = tab.frames.child(world, int(number(focus, "frame")))
        if inner is None:
            return {"way": "none"}
        world = inner
    return {"way": "none"}


async def _click_at(tab: Tab, place: Point) -> None:
    tab.chooser = None
    await _within(tab, tab.page.mouse.click(place.x, place.y))


async def _within(tab: Tab, work: Coroutine[object, object, T], *, seconds: float | None = None) -> T:
    return await tab.ending.within(work, seconds=channel.CALL_SECONDS if seconds is None else seconds)


def _refusal(way: str, role: str, how: Json) -> BrowserFailure:
    match way:
        case "disabled":
            return BrowserFailure(f"The {role} is disabled.", status=CONFLICT)
        case "read-only":
            return BrowserFailure(f"The {role} is read-only.", status=CONFLICT)
        case "select":
            return BrowserFailure("That is a select box: choose with browser_select_option.")
        case "checkbox" | "radio":
            return BrowserFailure(f"That is a {role}: click it.")
        case "set":
            return BrowserFailure(f"Give the index of this {role}; it wants {text(how, 'format')}.")
        case "file":
            return BrowserFailure("Give the index of the file field.")
        case _:
            return BrowserFailure(f"Nothing can be typed into that {role or 'place'}.")
