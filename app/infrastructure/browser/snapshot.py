"""Snapshots: what the model is shown of a page. All of it, or after an action only the lines that changed."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from app.domain.errors import BrowserFailure
from app.domain.models.browser import PageView
from app.infrastructure.browser import cdp
from app.infrastructure.browser.frames import IsolatedWorld
from app.infrastructure.browser.prompts import prompt_notes
from app.infrastructure.browser.tab import Tab
from app.infrastructure.browser.tabs import Tabs

MAX_SNAPSHOT_CHARS = 9_000
"""Maximum number of characters of a page's text in a snapshot."""
MIN_DIFF_CHARS = 1_200
"""Number of characters up to which a page is always shown whole: its changes would cost as much."""
MAX_CHANGED_SHARE = 0.5
"""Share of the text that may have changed; if more did, the page is shown whole."""
MAX_REMOVED_LINES = 8
"""Maximum number of removed lines to show."""
MAX_REMOVED_CHARS = 80
"""Maximum number of characters to show of a removed line."""
MIN_UNSHOWN_SCREENS = 0.05
"""Number of screens below which a part that is not shown is not mentioned."""
MAX_URL = 300
"""Maximum length of the URL of a snapshot."""
MAX_TITLE = 200
"""Maximum length of the title of a snapshot."""
MAX_ATTEMPTS = 6
"""Maximum number of attempts to read a page that keeps redirecting; after half of them it is stopped."""
RESTART_NUMBERS_AT = 900
"""Element number after which the next document starts at 1 again, so that numbers stay short."""

READ_SECONDS = 1.5
"""Time in seconds that the script may spend on one document."""
READ_LIMIT_SECONDS = 6.0
"""Time limit in seconds for the script to return."""
MAX_READ_CHARS = 60_000
"""Maximum number of characters to read of one document, before the lines to show are selected."""
MAX_DOCUMENTS = 20
"""Maximum number of documents (the page and its frames) to read."""
MAX_FRAME_DEPTH = 4
"""Maximum depth of nested frames to read."""
MAX_SHADOW_DEPTH = 3
"""Maximum depth of nested closed shadow trees to read."""

_HTTP_ERROR = 400
_GAP, _OUTSIDE = 1, 2
"""Flags of a line in the script's result: `Line.gap` and `Line.outside`."""
_ABOVE, _OUTSIDE_PANE = 1e9, 1e12
"""Distances that come after all others."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of Markdown. `top` and `bottom` are in pixels from the upper edge of the viewport."""

    text: str
    top: float
    bottom: float
    gap: bool = False
    """Whether a blank line comes before it."""
    outside: bool = False
    """Whether it is scrolled out of view within a pane or a frame that scrolls by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLines:
    """The lines that were read of a page, in order, and their place in the whole page."""

    lines: Sequence[Line]
    height: float
    """Height of the viewport in pixels."""
    top: float
    """Upper edge of the whole page (or of its main scrolling pane), in pixels from the viewport's upper edge."""
    bottom: float
    """Lower edge of the whole page."""
    cut_above: bool = False
    """Whether there is more above the first line."""
    cut_below: bool = False
    """Whether there is more below the last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The lines to show, and a description of how much of the page they leave out."""

    lines: tuple[Line, ...]
    unshown: str

    @property
    def text(self) -> str:
        """The lines as Markdown."""
        return "\n".join("\n" + line.text if line.gap and place else line.text for place, line in enumerate(self.lines))


_Reading = tuple[IsolatedWorld, cdp.Json, list[Line]]
"""World of the main document, the script's result for it, and the lines of the page."""


class SnapshotHistory:
    """The history of the snapshots of one browser: the last snapshot, and the element numbers in use.

    Numbers continue from page to page, so that a number of an earlier page matches no element of a later one.
    """

    def __init__(self) -> None:
        self.next_number = 1
        """Number of the next element."""
        self.document = ""
        """Id of the main document of the last snapshot."""
        self.lines: Sequence[Line] = ()
        """Lines of the last snapshot."""

    def start_reading(self, world: IsolatedWorld) -> None:
        """Restart the numbers if they have become long and no element of this document has one yet."""
        if self.next_number > RESTART_NUMBERS_AT and not world.numbers:
            self.next_number = 1

    def add_numbers(self, world: IsolatedWorld, next_number: int) -> None:
        """Record that elements of `world` got the numbers from `self.next_number` to below `next_number`."""
        if next_number > self.next_number:
            world.numbers.append(range(self.next_number, next_number))
            self.next_number = next_number


async def take_snapshot(history: SnapshotHistory, tabs: Tabs, tab: Tab, *, whole: bool, scrolled: bool) -> PageView:
    """Return a snapshot of the page of `tab`, without the notes.

    Args:
        history: Updated with the snapshot.
        tabs: All tabs of the browser.
        tab: The tab in front.
        whole: Whether to show all of the page even if little changed since the last snapshot.
        scrolled: Whether the action was scrolling; lines that disappeared are not mentioned then.

    Raises:
        BrowserFailure: The page cannot be read.
    """
    (world, raw, lines), screenshot = await _read_with_retries(history, tabs, tab)
    page = PageLines(
        lines=lines,
        height=cdp.number(raw, "height"),
        top=cdp.number(raw, "top"),
        bottom=cdp.number(raw, "bottom"),
        cut_above=cdp.item(raw, "cut").get("above") is True,
        cut_below=cdp.item(raw, "cut").get("below") is True,
    )
    selection = select_lines(page)
    is_new = history.document != world.id
    changes = None if whole or is_new else changed_lines(history.lines, selection.lines, removed=not scrolled)
    _note_page_state(tab, raw, is_new=is_new)
    history.document, history.lines = world.id, selection.lines
    return PageView(
        url=cdp.text(raw, "url")[:MAX_URL],
        title=cdp.text(raw, "title")[:MAX_TITLE],
        text=selection.text if changes is None else changes,
        partial=changes is not None,
        unshown=selection.unshown,
        screenshot=screenshot,
    )


def select_lines(page: PageLines, *, limit: int = MAX_SNAPSHOT_CHARS) -> Selection:
    """Select up to `limit` characters: first the viewport, then below it, above it, and what panes scrolled away."""
    order = sorted(range(len(page.lines)), key=lambda place: (_distance(page.lines[place], page.height), place))
    chosen: set[int] = set()
    left = limit
    for place in order:
        left -= len(page.lines[place].text) + 1
        if left < 0:
            break
        chosen.add(place)
    if not chosen and order:
        first = page.lines[order[0]]
        cut = Line(first.text[: limit - 1] + "…", first.top, first.bottom)
        return Selection(lines=(cut,), unshown=_unshown(page, [cut], dropped=page.lines))
    kept = [line for place, line in enumerate(page.lines) if place in chosen]
    dropped = [line for place, line in enumerate(page.lines) if place not in chosen]
    return Selection(lines=tuple(kept), unshown=_unshown(page, kept, dropped=dropped))


def changed_lines(before: Sequence[Line], now: Sequence[Line], *, removed: bool = True) -> str | None:
    """Return the lines that are new in `now` (`+`) and, with `removed`, those that are gone (`-`).

    Return None if `now` is better shown whole: it is short, or most of it changed.
    """
    known = Counter(line.text for line in before)
    added: list[str] = []
    for line in now:
        if known[line.text] > 0:
            known[line.text] -= 1
        elif line.text.strip():
            added.append(line.text)
    whole = sum(len(line.text) for line in now)
    if whole <= MIN_DIFF_CHARS or sum(map(len, added)) > whole * MAX_CHANGED_SHARE:
        return None
    gone: list[str] = []
    for line in before if removed else ():
        if line.text.strip() and known[line.text] > 0:
            known[line.text] -= 1
            gone.append(line.text)
    shown = [f"- {_shorten(each)}" for each in gone[:MAX_REMOVED_LINES]]
    if len(gone) > MAX_REMOVED_LINES:
        shown.append(f"- ({len(gone) - MAX_REMOVED_LINES} more lines)")
    return "\n".join([*shown, *(f"+ {each}" for each in added)])


async def _read_with_retries(history: SnapshotHistory, tabs: Tabs, tab: Tab) -> tuple[_Reading, bytes | None]:
    was_freed = False
    for attempt in range(MAX_ATTEMPTS):
        screenshot = asyncio.ensure_future(tab.camera.take())
        try:
            return await _PageReader(tab, history).read(), await screenshot
        except cdp.DocumentGone:
            if attempt < MAX_ATTEMPTS // 2:
                await tabs.settle(tab)
            else:
                await tab.stop_redirects()
        except cdp.PageUnresponsive:
            if was_freed:
                raise
            was_freed = True
            await tab.free()
        finally:
            screenshot.cancel()
    raise cdp.DocumentGone


class _PageReader:
    """Reads a page once: its document and the documents of its frames."""

    def __init__(self, tab: Tab, history: SnapshotHistory) -> None:
        self._frames = tab.frames
        self._note = tab.note
        self._history = history
        self._documents = 0

    async def read(self) -> _Reading:
        world = await self._frames.main()
        self._history.start_reading(world)
        return world, *await self._read_document(world, None, None, 0)

    async def _read_document(
        self, world: IsolatedWorld, start: float | None, end: float | None, depth: int
    ) -> tuple[cdp.Json, list[Line]]:
        """Return the script's result for a document, and its lines with those of its frames in their places.

        `start` and `end` are in the document's own pixels from the upper edge of its viewport.
        """
        self._documents += 1
        raw = await self._run_script(world, start, end)
        for _ in range(MAX_SHADOW_DEPTH):
            if not await world.add_closed_shadow_roots(int(cdp.number(raw, "suspects"))):
                break
            raw = await self._run_script(world, start, end)
        frames = await self._read_frames(world, raw, depth)
        lines: list[Line] = []
        for content, top, bottom, flags, _ in cast("list[tuple[str | int, float, float, int, int]]", raw["lines"]):
            if isinstance(content, str):
                lines.append(Line(content, top, bottom, gap=bool(flags & _GAP), outside=bool(flags & _OUTSIDE)))
            else:
                lines.extend(frames.get(content, ()))
        return raw, lines

    async def _run_script(self, world: IsolatedWorld, start: float | None, end: float | None) -> cdp.Json:
        options = {
            "from": start,
            "to": end,
            "maxChars": MAX_READ_CHARS,
            "seconds": READ_SECONDS,
            "next": self._history.next_number,
        }
        raw = await world.call("read", options, seconds=READ_LIMIT_SECONDS)
        self._history.add_numbers(world, int(cdp.number(raw, "next")))
        for note in prompt_notes(cdp.text(raw, "asked")):
            self._note(note)
        return raw

    async def _read_frames(self, world: IsolatedWorld, raw: cdp.Json, depth: int) -> dict[int, list[Line]]:
        """Return the lines of each frame by its position in the script's result."""
        boxes = cdp.items(raw, "frames")
        if not boxes or depth >= MAX_FRAME_DEPTH:
            return {}
        worlds = await self._frames.children(world, [int(cdp.number(box, "key")) for box in boxes])
        await world.release_handles()
        found: dict[int, list[Line]] = {}
        for box, inner in zip(boxes, worlds, strict=True):
            if inner is None or self._documents >= MAX_DOCUMENTS:
                continue
            try:
                lines = await self._read_frame(inner, box, cdp.number(raw, "height"), depth)
            except BrowserFailure:
                continue  # the page is read without the frame
            found[int(cdp.number(box, "position"))] = lines
        return found

    async def _read_frame(self, world: IsolatedWorld, box: cdp.Json, height: float, depth: int) -> list[Line]:
        """Return a frame's lines in the coordinates of the document around it; `height` is that document's viewport."""
        scale = cdp.number(box, "scale") or 1.0
        box_top = cdp.number(box, "y")
        box_bottom = box_top + cdp.number(box, "height")
        raw, lines = await self._read_document(
            world, (-height - box_top) / scale, (2 * height - box_top) / scale, depth + 1
        )
        if not lines:
            return []

        def moved(line: Line) -> Line:
            top, bottom = box_top + line.top * scale, box_top + line.bottom * scale
            outside = line.outside or top >= box_bottom or bottom <= box_top
            return Line(line.text, top, bottom, gap=line.gap and line is not lines[0], outside=outside)

        name = cdp.text(box, "name") or cdp.text(raw, "title")
        head = Line(f"(frame{f' {name!r}' if name else ''})", box_top, box_top, gap=True)
        return [head, *(moved(each) for each in lines), Line("(end of frame)", box_bottom, box_bottom)]


def _note_page_state(tab: Tab, raw: cdp.Json, *, is_new: bool) -> None:
    """Note what the text of the page does not show. The status and the type are noted once per document."""
    if cdp.text(raw, "ready") != "complete":
        tab.note("The page is still loading; this is what is there so far.")
    if cdp.item(raw, "cut").get("short"):
        tab.note("The page is too large to be read whole: part of it is missing here.")
    if not is_new:
        return
    if (status := int(cdp.number(raw, "status"))) >= _HTTP_ERROR:
        tab.note(f"The server answered with HTTP status {status}.")
    content_type = cdp.text(raw, "type")
    if content_type == "application/pdf":
        tab.note(
            "This is a PDF in the browser's viewer: its text is not shown here. Download it in a shell to read it."
        )
    elif content_type.startswith(("image/", "video/", "audio/")):
        tab.note(f"This is no page but a file of type {content_type}.")


def _distance(line: Line, height: float) -> float:
    """Return how late a line is shown: 0 in the viewport, more below it, more again above it, most if outside."""
    if line.outside:
        return _OUTSIDE_PANE + max(line.top, -line.bottom)
    if line.bottom >= 0 and line.top <= height:
        return 0
    return line.top - height if line.top > height else _ABOVE - line.bottom


def _unshown(page: PageLines, kept: Sequence[Line], *, dropped: Sequence[Line]) -> str:
    """Describe how much of the page is left out, such as `1.5 screens above, 7 screens below`."""
    kept = [line for line in kept if not line.outside] or kept
    dropped = [line for line in dropped if not line.outside]
    if not kept:
        return ""
    first, last = min(line.top for line in kept), max(line.bottom for line in kept)
    parts: list[tuple[float, str]] = []
    if page.cut_above or any(line.bottom <= first for line in dropped):
        parts.append((first - page.top, "above"))
    if page.cut_below or any(line.top >= last for line in dropped):
        parts.append((page.bottom - last, "below"))
    screens = [(pixels / max(page.height, 1), side) for pixels, side in parts]
    return ", ".join(f"{_screens(count)} {side}" for count, side in screens if count >= MIN_UNSHOWN_SCREENS)


def _screens(count: float) -> str:
    amount = f"{count:.1f}".removesuffix(".0") if count < 10 else f"{count:.0f}"
    return "1 screen" if amount == "1" else f"{amount} screens"


def _shorten(line: str) -> str:
    return line if len(line) <= MAX_REMOVED_CHARS else line[: MAX_REMOVED_CHARS - 1] + "…"
