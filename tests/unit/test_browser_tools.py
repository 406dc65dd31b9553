"""The browser toolkit: which browser methods it calls, and what the model and clients receive of a page."""

import asyncio
from dataclasses import dataclass, field

import pytest

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.models.browser import PageView, Point
from app.domain.models.tool import ToolResult
from app.domain.services.tools import browser
from app.domain.services.tools.arguments import BadArguments
from app.domain.services.tools.base import RunCall, Tool, ToolContext, ToolDependencies
from tests.fakes.fake_search import FakeSearch
from tests.fakes.memory_browser import Call, MemoryBrowser, MemoryBrowsers
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.fakes.memory_screenshots import MemoryScreenshotKeeper

TOOLS: dict[str, Tool] = {tool.spec.name: tool for tool in browser.TOOLS}
SHOP = PageView(
    url="https://shop.example/cart",
    title="Your cart",
    text='# Cart\n[1 Home](/)\n[2 button "Pay"]',
    notes=("A new tab opened.", 'An alert said "Hello".'),
    unshown="2 screens below",
    screenshot=b"\xff\xd8jpeg",
)


@dataclass
class BrowserTools:
    """A session's browser and the context of its tools."""

    browsers: MemoryBrowsers = field(default_factory=MemoryBrowsers)
    screenshots: MemoryScreenshotKeeper = field(default_factory=MemoryScreenshotKeeper)

    @property
    def browser(self) -> MemoryBrowser:
        return self.browsers.prepare("s")

    def bind(self, name: str, arguments: str) -> RunCall:
        shared = ToolDependencies(
            sandboxes=MemorySandboxProvider(),
            browsers=self.browsers,
            screenshots=self.screenshots,
            engine=FakeSearch(),
        )
        context = ToolContext(session_id="s", shared=shared)
        bound = TOOLS[f"browser_{name}"].bind(arguments, context)
        assert isinstance(bound, RunCall)
        return bound

    async def call(self, name: str, arguments: str = "{}") -> ToolResult:
        return await self.bind(name, arguments).run()


@pytest.fixture
def tools() -> BrowserTools:
    return BrowserTools()


@pytest.mark.parametrize(
    ("name", "arguments", "method", "given"),
    [
        ("view", "{}", "view", {}),
        ("navigate", '{"url": "a.example"}', "navigate", {"url": "a.example"}),
        ("restart", '{"url": "a.example"}', "restart", {"url": "a.example"}),
        ("click", '{"index": 3}', "click", {"target": 3}),
        ("click", '{"coordinate_x": 5, "coordinate_y": 6.5}', "click", {"target": Point(x=5, y=6.5)}),
        (
            "input",
            '{"text": "a", "press_enter": true, "index": 0}',
            "input",
            {"target": 0, "text": "a", "press_enter": True},
        ),
        (
            "input",
            '{"text": "a", "press_enter": false, "coordinate_x": 1, "coordinate_y": 2}',
            "input",
            {"target": Point(x=1, y=2), "text": "a", "press_enter": False},
        ),
        (
            "input",
            '{"text": "a", "press_enter": false}',
            "input",
            {"target": None, "text": "a", "press_enter": False},
        ),
        ("move_mouse", '{"coordinate_x": 1, "coordinate_y": 2}', "move_mouse", {"point": Point(x=1, y=2)}),
        ("press_key", '{"key": "Enter"}', "press_key", {"key": "Enter"}),
        ("select_option", '{"index": 3, "option": 0}', "select_option", {"index": 3, "option": 0}),
        ("scroll_up", "{}", "scroll", {"down": False, "to_end": False}),
        ("scroll_up", '{"to_top": true}', "scroll", {"down": False, "to_end": True}),
        ("scroll_down", "{}", "scroll", {"down": True, "to_end": False}),
        ("scroll_down", '{"to_bottom": true}', "scroll", {"down": True, "to_end": True}),
        ("console_exec", '{"javascript": "1"}', "execute", {"javascript": "1"}),
        ("console_view", "{}", "console", {"max_lines": None}),
        ("console_view", '{"max_lines": 5}', "console", {"max_lines": 5}),
    ],
)
async def test_each_function_calls_one_browser_method(
    tools: BrowserTools, name: str, arguments: str, method: str, given: dict[str, object]
) -> None:
    result = await tools.call(name, arguments)
    assert result.success
    assert tools.browser.calls == [Call(method, given)]


@pytest.mark.parametrize("name", ["click", "input"])
@pytest.mark.parametrize(
    "target",
    [
        '"index": 1, "coordinate_x": 1, "coordinate_y": 2',
        '"index": 1, "coordinate_x": 1',
        '"coordinate_x": 1',
        '"coordinate_y": 1',
    ],
)
async def test_incomplete_or_double_target_is_refused_without_browser_call(
    tools: BrowserTools, name: str, target: str
) -> None:
    rest = ', "text": "a", "press_enter": false' if name == "input" else ""
    with pytest.raises(BrowserFailure, match="either index, or both coordinate_x and coordinate_y"):
        await tools.call(name, f"{{{target}{rest}}}")
    assert tools.browser.calls == []


async def test_click_without_target_is_refused(tools: BrowserTools) -> None:
    with pytest.raises(BrowserFailure, match="Say what to click"):
        await tools.call("click")
    assert tools.browser.calls == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("navigate", "{}"),
        ("navigate", '{"url": ""}'),
        ("select_option", '{"index": 1, "option": -1}'),
        ("console_view", '{"max_lines": 0}'),
        ("view", '{"full": true}'),
    ],
)
def test_invalid_browser_arguments_are_refused(tools: BrowserTools, name: str, arguments: str) -> None:
    with pytest.raises(BadArguments):
        tools.bind(name, arguments)


async def test_result_text_ends_with_the_page(tools: BrowserTools) -> None:
    tools.browser.pages = [SHOP]
    result = await tools.call("view")
    assert result.text == (
        "URL: https://shop.example/cart\nTitle: Your cart\nNote: A new tab opened.\n"
        'Note: An alert said "Hello".\nNot shown: 2 screens below\n\n# Cart\n[1 Home](/)\n[2 button "Pay"]'
    )


async def test_result_content_has_screenshot_address_and_short_message(tools: BrowserTools) -> None:
    tools.browser.pages = [SHOP]
    result = await tools.call("navigate", '{"url": "shop.example"}')
    assert result.message == "Your cart"
    assert result.data == {"url": SHOP.url, "title": SHOP.title, "notes": list(SHOP.notes)}
    assert result.content == {"screenshot": "/pictures/s/1", "url": SHOP.url, "title": SHOP.title}
    assert tools.screenshots.kept["/pictures/s/1"] == SHOP.screenshot


async def test_action_succeeds_when_screenshot_cannot_be_stored(tools: BrowserTools) -> None:
    tools.browser.pages = [SHOP]
    tools.screenshots.trouble = "the disk is full"
    result = await tools.call("click", '{"index": 1}')
    assert result.success
    assert result.content == {"url": SHOP.url, "title": SHOP.title}


async def test_result_without_screenshot_has_no_address(tools: BrowserTools) -> None:
    result = await tools.call("view")
    assert result.content == {"url": "about:blank", "title": ""}
    assert result.message == "about:blank"
    assert tools.screenshots.kept == {}


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (PageView(url="u", title="t", text=""), "[the page is empty]"),
        (PageView(url="u", title="t", text="", partial=True), "[nothing on the page changed]"),
        (PageView(url="u", title="t", text="+ b", partial=True), "[only what changed; browser_view shows all]\n\n+ b"),
        (PageView(url="u", title="t", text="b"), "\nb"),
    ],
)
async def test_result_text_distinguishes_whole_page_changes_and_empty_page(
    tools: BrowserTools, view: PageView, said: str
) -> None:
    tools.browser.pages = [view]
    assert (await tools.call("view")).text == f"URL: u\nTitle: t\n{said}"


async def test_script_value_is_returned_with_the_resulting_page(tools: BrowserTools) -> None:
    tools.browser.value, tools.browser.pages = "[1,2]", [PageView(url="u", title="t", text="", partial=True)]
    result = await tools.call("console_exec", '{"javascript": "[1,2]"}')
    assert result.text == "URL: u\nTitle: t\nValue: [1,2]\n[nothing on the page changed]"
    assert result.content == {"url": "u", "title": "t", "console": "[1,2]"}


async def test_long_script_value_is_clipped(tools: BrowserTools) -> None:
    tools.browser.value = "x" * 100_000
    assert len((await tools.call("console_exec", '{"javascript": "1"}')).text) < 9_000


async def test_console_lines_are_returned(tools: BrowserTools) -> None:
    tools.browser.lines = ("log a", "error b")
    result = await tools.call("console_view")
    assert result.text == "log a\nerror b"
    assert result.content == {"console": "log a\nerror b"}
    tools.browser.lines = ()
    assert (await tools.call("console_view")).text == "[the console is empty]"


async def test_long_console_returns_newest_lines(tools: BrowserTools) -> None:
    tools.browser.lines = tuple(f"log {n} {'x' * 500}" for n in range(200))
    result = await tools.call("console_view")
    assert len(result.text) <= 16_000
    assert result.text.splitlines()[-1].startswith("log 199 ")
    assert result.data is not None
    assert result.data["lines"] == result.text.splitlines()


@pytest.mark.parametrize("failure", [BrowserFailure("no such index", status=404), SandboxUnavailable("gone")])
async def test_browser_failure_is_raised_unchanged(tools: BrowserTools, failure: BrowserFailure) -> None:
    tools.browser.failure = failure
    with pytest.raises(type(failure), match=str(failure)):
        await tools.call("click", '{"index": 1}')


async def test_cancelled_call_cancels_the_browser_action(tools: BrowserTools) -> None:
    tools.browser.may_return.clear()
    task = asyncio.create_task(tools.call("navigate", '{"url": "slow.example"}'))
    while not tools.browser.calls:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tools.browser.cancelled == 1


def test_only_read_only_functions_are_parallel(tools: BrowserTools) -> None:
    needed = {"navigate": '{"url": "a"}', "restart": '{"url": "a"}', "press_key": '{"key": "a"}'}
    point = '{"coordinate_x": 1, "coordinate_y": 1}'
    needed |= {"input": '{"text": "", "press_enter": false}', "move_mouse": point}
    needed |= {"select_option": '{"index": 1, "option": 1}', "console_exec": '{"javascript": "1"}'}
    names = [name.removeprefix("browser_") for name in TOOLS]
    assert len(names) == 12
    assert [n for n in names if tools.bind(n, needed.get(n, "{}")).parallel] == ["view", "console_view"]
