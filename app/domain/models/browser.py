"""What a browser returns, and points in its viewport."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the viewport, in CSS pixels from the upper left corner."""

    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """A snapshot of a page after an action: what a model needs to continue, and no more."""

    url: str
    title: str
    text: str
    """The visible content as Markdown, of limited length. Interactive elements are marked in their places:
    `[4 Home](/)` is a link, `[5 textbox "Email" = "a@b.c"]` a field. The number is the index for `click` and others."""
    partial: bool = False
    """Whether `text` has only the lines that changed since the previous snapshot; it is empty if none did."""
    unshown: str = ""
    """How much of the page `text` leaves out, such as `1.5 screens above, 7 screens below`; empty for nothing."""
    notes: tuple[str, ...] = ()
    """Events since the previous snapshot: a new tab, a dialog that was accepted, a download with its path."""
    screenshot: bytes | None = field(default=None, repr=False)
    """The viewport as a small JPEG; None if none could be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptResult:
    """The value of JavaScript in a page, as text (as JSON if it is not a string), and the page afterwards."""

    value: str
    page: PageView
