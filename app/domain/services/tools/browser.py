"""The browser toolkit: control the browser in the session's sandbox."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from pydantic import Field

from app.domain.errors import BrowserFailure
from app.domain.external.browser import Browser, Target
from app.domain.models.browser import PageView, Point
from app.domain.models.tool import Image, ToolResult
from app.domain.services.tools.base import MAX_TEXT, I, Tool, ToolContext, ToolInput, clip, function_tool

MAX_MESSAGE = 100
"""Maximum length of the line that clients show, in characters."""

MAX_VALUE = 8_000
"""Maximum length of a JavaScript value that the model reads, in characters. The page is added to it."""

MAX_PICTURE_BYTES = 400_000
"""Maximum size of a screenshot that the model is shown, in bytes. They are usually below 100 KB."""

UNCHANGED = "[nothing on the page changed]"
CHANGED = "[only what changed; browser_view shows all]"
EMPTY = "[the page is empty]"


class _NoInput(ToolInput):
    pass


class _Url(ToolInput):
    url: str = Field(min_length=1)


class _Target(ToolInput):
    index: int | None = None
    coordinate_x: float | None = None
    coordinate_y: float | None = None

    def target(self) -> Target | None:
        """Return the element or point to act on; None if no argument is given.

        Raises:
            BrowserFailure: Both an index and coordinates are given, or only one coordinate.
        """
        point = (self.coordinate_x, self.coordinate_y)
        match self.index, *point:
            case None, None, None:
                return None
            case int(index), None, None:
                return index
            case None, float(x), float(y):
                return Point(x=x, y=y)
            case _:
                raise BrowserFailure("Give either index, or both coordinate_x and coordinate_y.")


class _Input(_Target):
    text: str
    press_enter: bool


class _Point(ToolInput):
    coordinate_x: float
    coordinate_y: float


class _Key(ToolInput):
    key: str = Field(min_length=1, description="e.g. Control+a, Alt+ArrowLeft (back)")


class _Option(ToolInput):
    index: int
    option: int = Field(ge=0)


class _Up(ToolInput):
    to_top: bool = False


class _Down(ToolInput):
    to_bottom: bool = False


class _Script(ToolInput):
    javascript: str = Field(min_length=1)


class _Lines(ToolInput):
    max_lines: int | None = Field(None, ge=1)


async def _console_exec(args: _Script, context: ToolContext) -> ToolResult:
    result = await (await context.browser()).execute(args.javascript)
    value = clip(result.value, MAX_VALUE)
    return await _result(result.page, context, value=value)


async def _console_view(args: _Lines, context: ToolContext) -> ToolResult:
    lines = _newest(await (await context.browser()).console(args.max_lines))
    text = "\n".join(lines)
    return ToolResult(
        text=text or "[the console is empty]",
        message=f"{len(lines)} lines",
        data={"lines": lines},
        content={"console": text},
    )


def _newest(lines: Sequence[str]) -> list[str]:
    """Return as many of the last lines as fit into `MAX_TEXT`."""
    left = MAX_TEXT
    kept: list[str] = []
    for line in reversed(lines):
        left -= len(line) + 1
        if left < 0:
            break
        kept.append(line)
    return kept[::-1]


async def _view(_: _NoInput, context: ToolContext) -> ToolResult:
    """Show the page. Only this tool shows its picture too: after each action it would cost a thousand tokens."""
    view = await (await context.browser()).view()
    result = await _result(view, context)
    jpeg = view.screenshot or b""
    if not context.vision or len(jpeg) > MAX_PICTURE_BYTES or (picture := Image.of_jpeg(jpeg)) is None:
        return result
    return replace(result, images=(picture,))


async def _click(args: _Target, browser: Browser) -> PageView:
    target = args.target()
    if target is None:
        raise BrowserFailure("Say what to click: give index, or coordinate_x and coordinate_y.")
    return await browser.click(target)


async def _input(args: _Input, browser: Browser) -> PageView:
    return await browser.input(args.target(), args.text, press_enter=args.press_enter)


def _action(act: Callable[[I, Browser], Awaitable[PageView]]) -> Callable[[I, ToolContext], Awaitable[ToolResult]]:
    async def run(args: I, context: ToolContext) -> ToolResult:
        return await _result(await act(args, await context.browser()), context)

    return run


async def _result(view: PageView, context: ToolContext, *, value: str | None = None) -> ToolResult:
    """Return `view` as a tool result. The page's text comes last, so that it cannot imitate the other lines."""
    heads = [f"URL: {view.url}", f"Title: {view.title}", *(f"Note: {note}" for note in view.notes)]
    if view.unshown:
        heads.append(f"Not shown: {view.unshown}")
    content: dict[str, object] = {"url": view.url, "title": view.title}
    if view.screenshot is not None and (address := await context.keep_screenshot(view.screenshot)) is not None:
        content["screenshot"] = address
    if value is not None:
        heads.append(f"Value: {value}")
        content["console"] = value
    return ToolResult(
        text="\n".join(heads) + "\n" + _page_text(view),
        message=(view.title or view.url)[:MAX_MESSAGE],
        data={"url": view.url, "title": view.title, "notes": list(view.notes)},
        content=content,
    )


def _page_text(view: PageView) -> str:
    if view.partial:
        return f"{CHANGED}\n\n{view.text}" if view.text else UNCHANGED
    return f"\n{view.text}" if view.text else EMPTY


def _tool(
    name: str,
    description: str,
    input: type[I],
    act: Callable[[I, Browser], Awaitable[PageView]],
) -> Tool:
    return function_tool(f"browser_{name}", "browser", description, input, _action(act))


TOOLS: tuple[Tool, ...] = (
    function_tool("browser_view", "browser", "Show the page: [number] is an index.", _NoInput, _view, parallel=True),
    _tool("navigate", "Open a URL or ~/file.", _Url, lambda args, b: b.navigate(args.url)),
    _tool("restart", "Restart the browser at a URL.", _Url, lambda args, b: b.restart(args.url)),
    _tool("click", "Click an index or a point.", _Target, _click),
    _tool("input", "Fill in the field at an index, a point or the focus; a file field with a path.", _Input, _input),
    _tool(
        "move_mouse",
        "Move the mouse.",
        _Point,
        lambda args, b: b.move_mouse(Point(x=args.coordinate_x, y=args.coordinate_y)),
    ),
    _tool("press_key", "Press keys.", _Key, lambda args, b: b.press_key(args.key)),
    _tool(
        "select_option",
        "Choose an option of a select box.",
        _Option,
        lambda args, b: b.select_option(args.index, args.option),
    ),
    _tool("scroll_up", "Scroll up.", _Up, lambda args, b: b.scroll(down=False, to_end=args.to_top)),
    _tool("scroll_down", "Scroll down.", _Down, lambda args, b: b.scroll(down=True, to_end=args.to_bottom)),
    function_tool("browser_console_exec", "browser", "Return a JavaScript value.", _Script, _console_exec),
    function_tool("browser_console_view", "browser", "Show the console.", _Lines, _console_view, parallel=True),
)
