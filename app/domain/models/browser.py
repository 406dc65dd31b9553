"""What a browser shows, and what in it is meant."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place in the viewport, in CSS pixels from its upper left corner."""

    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """A page as it is after a call: what a model needs to go on, and no more."""

    url: str
    title: str
    text: str
    """What can be seen, as Markdown, bounded. Interactive elements are marked where they stand: `[4 Home](/)` is a
    link, `[5 textbox "Email" = "a@b.c"]` a field; the number is the index that `click` and the others take."""
    partial: bool = False
    """`text` holds only what is new or different since the view before; empty when nothing is."""
    unshown: str = ""
    """How much of the page `text` leaves out, such as `1.5 screens above, 7 below`; empty when it is all there."""
    notes: tuple[str, ...] = ()
    """What happened meanwhile, in words: a new tab, a dialog that was answered, a download with its path."""
    screenshot: bytes | None = field(default=None, repr=False)
    """The viewport as a small JPEG; None when none could be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptResult:
    """What JavaScript in a page gave: its value as text (JSON where it is no string), and the page afterwards."""

    value: str
    page: PageView
