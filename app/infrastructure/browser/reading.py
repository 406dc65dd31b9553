"""Reading a page: its document and the documents in its frames, as one."""

from dataclasses import dataclass
from typing import TypedDict, cast

from app.domain.errors import BrowserFailure
from app.infrastructure.browser.excerpt import Line, Sheet
from app.infrastructure.browser.frames import Frames
from app.infrastructure.browser.world import World

READ_SECONDS = 1.5
"""That the script itself gives to one document."""
ANSWER_SECONDS = 6.0
MOST_CHARS = 60_000
"""That are read of one document around the viewport, before the lines to tell are chosen."""
MOST_DOCUMENTS = 20
MOST_DEPTH = 4
MOST_SHADOWS = 3
"""Closed shadow trees within closed shadow trees that are looked into."""

RawLine = tuple[str | int, float, float, int, int]
"""Text (or the position of a frame), top, bottom, signs; the last counts for the script only."""
GAP, OUTSIDE = 1, 2
"""Signs of a line: see `Line.gap`, `Line.outside`."""


class Cut(TypedDict):
    """What was left out: above and below what was read, or because it would have taken too long."""

    above: bool
    below: bool
    short: bool


class FrameBox(TypedDict):
    """Where the inside of a frame is drawn in the document around it."""

    key: int
    x: float
    y: float
    width: float
    height: float
    scale: float
    name: str


class Raw(TypedDict):
    """What the script answers about one document."""

    url: str
    title: str
    type: str
    ready: str
    status: int
    seen: str
    lines: list[RawLine]
    cut: Cut
    next: int
    suspects: int
    frames: list[FrameBox | None]
    width: float
    height: float
    top: float
    bottom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A page as it was read. `token` names its document; `next_number` is for the next element that is numbered."""

    url: str
    title: str
    content_type: str
    loading: bool
    status: int
    short: bool
    """It was too large to be read whole in time."""
    sheet: Sheet
    token: str
    next_number: int


async def read_page(frames: Frames, next_number: int) -> Reading:
    """Read the tab's page.

    Raises:
        ContextGone: it went on to another meanwhile.
        TabGone, Hung: see there.
    """
    world = await frames.main()
    job = _Job(frames, next_number)
    raw, lines = await job.document(world, None, None, 0)
    return Reading(
        url=raw["url"],
        title=raw["title"],
        content_type=raw["type"],
        loading=raw["ready"] != "complete",
        status=raw["status"],
        short=raw["cut"]["short"],
        sheet=Sheet(
            lines=lines,
            height=raw["height"],
            top=raw["top"],
            bottom=raw["bottom"],
            cut_above=raw["cut"]["above"],
            cut_below=raw["cut"]["below"],
        ),
        token=world.token,
        next_number=job.next_number,
    )


class _Job:
    """One reading of one page."""

    def __init__(self, frames: Frames, next_number: int) -> None:
        self._frames = frames
        self.next_number = next_number
        self._documents = 0

    async def document(
        self, world: World, start: float | None, end: float | None, depth: int
    ) -> tuple[Raw, list[Line]]:
        """A document's lines with those of its frames between them, between `start` and `end` of its own pixels."""
        self._documents += 1
        raw = await self._read(world, start, end)
        for _ in range(MOST_SHADOWS):
            if not raw["suspects"] or not await self._look_inside(world):
                break
            raw = await self._read(world, start, end)
        return raw, await self._with_frames(world, raw, depth)

    async def _read(self, world: World, start: float | None, end: float | None) -> Raw:
        options = {"from": start, "to": end, "most": MOST_CHARS, "seconds": READ_SECONDS, "next": self.next_number}
        raw = cast("Raw", await world.call("read", options, seconds=ANSWER_SECONDS))
        if raw["next"] > self.next_number:
            world.numbers.append(range(self.next_number, raw["next"]))
            self.next_number = raw["next"]
        return raw

    async def _look_inside(self, world: World) -> bool:
        """Whether an element that might have a closed shadow tree has one."""
        found = await world.adopt(await world.members("suspectElements"))
        await world.call("examined")
        await world.release()
        return found > 0

    async def _with_frames(self, world: World, raw: Raw, depth: int) -> list[Line]:
        inside = await self._inside(world, raw, depth)
        lines: list[Line] = []
        for what, top, bottom, signs, _ in raw["lines"]:
            if isinstance(what, str):
                lines.append(Line(what, top, bottom, gap=bool(signs & GAP), outside=bool(signs & OUTSIDE)))
            else:
                lines.extend(inside.get(what, ()))
        return lines

    async def _inside(self, world: World, raw: Raw, depth: int) -> dict[int, list[Line]]:
        """The lines of each frame by its position."""
        boxes = [(place, box) for place, box in enumerate(raw["frames"]) if box is not None]
        if not boxes or depth >= MOST_DEPTH:
            return {}
        worlds = await self._frames.inside(world, [box["key"] for _, box in boxes])
        await world.release()
        found: dict[int, list[Line]] = {}
        for (place, box), inner in zip(boxes, worlds, strict=True):
            if inner is None or self._documents >= MOST_DOCUMENTS:
                continue
            try:
                found[place] = await self._frame(inner, box, raw, depth)
            except BrowserFailure:
                continue  # the page around a frame can be read without it
        return found

    async def _frame(self, inner: World, box: FrameBox, outer: Raw, depth: int) -> list[Line]:
        scale = box["scale"] or 1.0
        start, end = (-outer["height"] - box["y"]) / scale, (2 * outer["height"] - box["y"]) / scale
        raw, lines = await self.document(inner, start, end, depth + 1)
        if not lines:
            return []

        def placed(line: Line) -> Line:
            top, bottom = box["y"] + line.top * scale, box["y"] + line.bottom * scale
            outside = line.outside or top >= box["y"] + box["height"] or bottom <= box["y"]
            return Line(line.text, top, bottom, gap=line.gap and line is not lines[0], outside=outside)

        name = box["name"] or raw["title"]
        edge = Line(f"(frame{f' {name!r}' if name else ''})", box["y"], box["y"], gap=True)
        bottom = box["y"] + box["height"]
        return [edge, *(placed(each) for each in lines), Line("(end of frame)", bottom, bottom)]
