"""Finding the place of an element on the screen, through the frames that it is in."""

from app.domain.errors import BrowserFailure
from app.domain.models.browser import Point
from app.infrastructure.browser.channel import Json, number, text
from app.infrastructure.browser.failures import CONFLICT, ContextGone, gone
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.world import World


def world_of(tab: Tab, index: int) -> World:
    """The document whose element has the number `index`.

    Raises:
        BrowserFailure: no element of this tab has it (any more).
    """
    world = tab.frames.owner_of(index)
    if world is None:
        raise gone(index)
    return world


async def ask(world: World, index: int, function: str, *values: object) -> Json:
    """What our function answers about element `index`.

    Raises:
        BrowserFailure: the element, or its document, is gone.
    """
    try:
        return await world.ask(function, index, *values)
    except ContextGone:
        raise gone(index) from None


async def place_of(tab: Tab, index: int) -> tuple[Point, str]:
    """A free point of element `index`, scrolled into view first, and what kind of element it is.

    Raises:
        BrowserFailure: it is gone, disabled, not to be seen, or something else covers it.
    """
    world = world_of(tab, index)
    await _show_frames(world, index)
    found = await ask(world, index, "locate")
    match text(found, "state"):
        case "free":
            place = await _outward(world, index, number(found, "x"), number(found, "y"))
            return place, text(found, "kind")
        case "gone":
            raise gone(index)
        case "disabled":
            raise BrowserFailure(f"It is disabled: {text(found, 'is')}.", status=CONFLICT)
        case "covered":
            raise _covered(index, text(found, "by"))
        case _:
            raise BrowserFailure(f"Element [{index}] cannot be seen at present.", status=CONFLICT)


async def check_point(tab: Tab, point: Point) -> None:
    """Raise BrowserFailure when `point` lies outside the viewport."""
    size = await (await tab.frames.main()).ask("size")
    width, height = number(size, "width"), number(size, "height")
    if not (0 <= point.x < width and 0 <= point.y < height):
        raise BrowserFailure(
            f"({point.x:g}, {point.y:g}) is outside the viewport, which is {width:g} x {height:g} pixels."
        )


async def _show_frames(world: World, index: int) -> None:
    """Scroll the frames around `world` into view, the outermost first."""
    if world.owner is None:
        return
    await _show_frames(world.owner.world, index)
    try:
        await world.owner.world.call("showFrame", world.owner.key)
    except ContextGone:
        raise gone(index) from None


async def _outward(world: World, index: int, x: float, y: float) -> Point:
    """A point of a frame's document as a point of the viewport."""
    owner = world.owner
    if owner is None:
        return Point(x=x, y=y)
    try:
        box = await owner.world.ask("frameBox", owner.key)
        if not box:
            raise gone(index)
        scale = number(box, "scale") or 1.0
        x, y = number(box, "x") + x * scale, number(box, "y") + y * scale
        cover = await owner.world.call("coverOf", owner.key, x, y)
    except ContextGone:
        raise gone(index) from None
    if cover:
        raise _covered(index, str(cover))
    return await _outward(owner.world, index, x, y)


def _covered(index: int, cover: str) -> BrowserFailure:
    return BrowserFailure(f"Element [{index}] is covered by {cover}: close or move that first.", status=CONFLICT)
