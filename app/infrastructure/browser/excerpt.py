"""Which lines of a page are told: those around the viewport, and after an action only those that changed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_CHARS = 9_000
"""Of a page's text that one view tells."""
SMALL_CHARS = 1_200
"""A page of no more is told whole every time: that is plainer than its changes, and costs as little."""
MOST_CHANGED = 0.5
"""Of the text; when more changed, it is told whole."""
MAX_GONE = 8
"""Lines that are no longer there that are told as such."""
GONE_CHARS = 80
LEAST_UNSHOWN = 0.05
"""Screens that are worth a word."""


_ABOVE, _HIDDEN = 1e9, 1e12
"""Distances that come after all others."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of Markdown. `top`, `bottom`: where it is drawn, in pixels from the viewport's upper edge."""

    text: str
    top: float
    bottom: float
    gap: bool = False
    """A blank line comes before it."""
    outside: bool = False
    """It is scrolled away within a pane or a frame that scrolls by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What was read of a page: its lines in order, and where they stand in the whole of it."""

    lines: Sequence[Line]
    height: float
    """Of the viewport."""
    top: float
    """Of the whole page (or of what scrolls in it), from the viewport's upper edge: at most 0 when scrolled down."""
    bottom: float
    cut_above: bool = False
    """There is more above the first line that was not read."""
    cut_below: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """The lines that are told, and in words how much of the page is not."""

    lines: tuple[Line, ...]
    unshown: str

    @property
    def text(self) -> str:
        """The lines as one text."""
        return joined(self.lines)


def choose(sheet: Sheet, *, limit: int = MAX_CHARS) -> Excerpt:
    """Those of the lines that are told: what is in the viewport, then what is nearest below it, then above it; at last
    what panes of the page hide."""
    order = sorted(range(len(sheet.lines)), key=lambda number: (_distance(sheet.lines[number], sheet.height), number))
    chosen: set[int] = set()
    left = limit
    for number in order:
        size = len(sheet.lines[number].text) + 1
        if size > left:
            break
        chosen.add(number)
        left -= size
    if not chosen and order:
        first = sheet.lines[order[0]]
        cut = Line(first.text[: limit - 1] + "…", first.top, first.bottom)
        return Excerpt(lines=(cut,), unshown=_unshown(sheet, [cut], dropped=sheet.lines))
    kept = [line for number, line in enumerate(sheet.lines) if number in chosen]
    dropped = [line for number, line in enumerate(sheet.lines) if number not in chosen]
    return Excerpt(lines=tuple(kept), unshown=_unshown(sheet, kept, dropped=dropped))


def changes(before: Sequence[Line], now: Sequence[Line], *, gone: bool = True) -> str | None:
    """What is new in `now` (`+`) and, with `gone`, no longer there (`-`); None when `now` is better told whole."""
    known = Counter(line.text for line in before)
    fresh: list[str] = []
    size = 0
    for line in now:
        if known[line.text] > 0:
            known[line.text] -= 1
        elif line.text.strip():
            fresh.append(f"+ {line.text}")
            size += len(line.text)
    whole = sum(len(line.text) for line in now)
    if whole <= SMALL_CHARS or size > whole * MOST_CHANGED:
        return None
    lost = [line.text for line in before if line.text.strip() and _taken(known, line.text)] if gone else []
    told = [f"- {_short(text)}" for text in lost[:MAX_GONE]]
    if len(lost) > MAX_GONE:
        told.append(f"- ({len(lost) - MAX_GONE} more lines)")
    return "\n".join([*told, *fresh])


def joined(lines: Iterable[Line]) -> str:
    """Lines as Markdown text."""
    parts: list[str] = []
    for line in lines:
        if parts and line.gap:
            parts.append("")
        parts.append(line.text)
    return "\n".join(parts)


def _distance(line: Line, height: float) -> float:
    """0 in the viewport, growing with the way below it; above it comes after everything below."""
    if line.outside:
        return _HIDDEN + max(line.top, -line.bottom)
    if line.bottom >= 0 and line.top <= height:
        return 0
    return line.top - height if line.top > height else _ABOVE - line.bottom


def _unshown(sheet: Sheet, kept: Sequence[Line], *, dropped: Sequence[Line]) -> str:
    kept = [line for line in kept if not line.outside] or kept
    dropped = [line for line in dropped if not line.outside]
    if not kept:
        return ""
    first, last = min(line.top for line in kept), max(line.bottom for line in kept)
    parts: list[tuple[float, str]] = []
    if sheet.cut_above or any(line.bottom <= first for line in dropped):
        parts.append((first - sheet.top, "above"))
    if sheet.cut_below or any(line.top >= last for line in dropped):
        parts.append((sheet.bottom - last, "below"))
    told = [(pixels / max(sheet.height, 1), where) for pixels, where in parts]
    return ", ".join(f"{_screens(count)} {where}" for count, where in told if count >= LEAST_UNSHOWN)


def _screens(count: float) -> str:
    amount = f"{count:.1f}".removesuffix(".0") if count < 10 else f"{count:.0f}"
    return "1 screen" if amount == "1" else f"{amount} screens"


def _taken(known: Counter[str], text: str) -> bool:
    if known[text] > 0:
        known[text] -= 1
        return True
    return False


def _short(text: str) -> str:
    return text if len(text) <= GONE_CHARS else text[: GONE_CHARS - 1] + "…"
