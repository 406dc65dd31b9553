"""Tabs, pop-ups and dialogs."""

import asyncio
import time

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import tabs
from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    "opener",
    [
        "<a href='/second' target=_blank>open</a>",
        "<a href='/second' target=_blank rel=noopener>open</a>",
        '<button onclick=\'window.open("/second", "w", "width=300,height=300")\'>open</button>',
    ],
)
async def test_new_tab_is_in_front_until_closed(harness: BrowserHarness, opener: str) -> None:
    harness.site.html("<p>second page</p>", "/second")
    view = await harness.open_page(f"<p>first page</p>{opener}")
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, "open"))
    assert view.text == "second page"
    assert f"A new tab was opened and is in front: {harness.site.url('/second')}" in view.notes[0]
    view = await browser.press_key("Control+w")
    assert "first page" in view.text
    assert view.notes == ("The tab was closed; the one before it is in front again.",)
    await browser.click(number_of(view.text, "open"))


async def test_page_that_closes_itself_returns_to_opener(harness: BrowserHarness) -> None:
    harness.site.html("<button onclick='window.close()'>close me</button>", "/second")
    view = await harness.open_page("<p>first</p><button onclick='window.open(\"/second\")'>open</button>")
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, "open"))
    view = await browser.click(number_of(view.text, "close me"))
    assert view.text.startswith("first")


async def test_popup_with_silent_server_is_noted(harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs, "POPUP_SECONDS", 0.5)
    harness.site.pages["/hangs"] = harness.site.endless()
    view = await harness.open_page("<p>first</p><button onclick='window.open(\"/hangs\")'>open</button>")
    began = time.monotonic()
    view = await (await harness.browser()).click(number_of(view.text, "open"))
    assert time.monotonic() - began < 5
    assert "first" in view.text
    assert "its server has not answered yet" in " ".join(view.notes)


async def test_number_of_other_tab_is_stale(harness: BrowserHarness) -> None:
    harness.site.html("<button>there</button>", "/second")
    view = await harness.open_page("<button onclick='window.open(\"/second\")'>open</button><button>here</button>")
    here = number_of(view.text, "here")
    browser = await harness.browser()
    await browser.click(number_of(view.text, "open"))
    with pytest.raises(BrowserFailure, match="no element"):
        await browser.click(here)


async def test_keys_switch_and_open_tabs(harness: BrowserHarness) -> None:
    await harness.open_page("<p>first</p>")
    browser = await harness.browser()
    view = await browser.press_key("ctrl+t")
    assert view.url == "about:blank"
    await browser.navigate(harness.site.html("<p>second</p>", "/second"))
    assert "first" in (await browser.press_key("Control+Tab")).text
    assert "second" in (await browser.press_key("Control+Shift+Tab")).text


async def test_closing_last_tab_opens_blank_tab(harness: BrowserHarness) -> None:
    await harness.open_page("<p>only</p>")
    browser = await harness.browser()
    view = await browser.press_key("Control+w")
    assert view.url == "about:blank"
    assert view.notes == ("The last tab was closed: a blank one was opened in its place.",)
    assert (await harness.open_page("<p>again</p>")).text == "again"


async def test_oldest_tab_is_closed_above_limit(harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs, "MAX_TABS", 4)
    await harness.open_page("<p>first</p>")
    browser = await harness.browser()
    for _ in range(5):
        view = await browser.press_key("Control+t")
    assert "the oldest was closed" in " ".join(view.notes)
    async with asyncio.timeout(30):
        while len(await asyncio.to_thread(harness.chromium.tabs)) > 4:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "result", "note"),
    [
        ("alert('Hello\\nyou')", "undefined", "An alert said 'Hello you'; it was closed."),
        ("confirm('Sure?')", "true", "The page asked 'Sure?'; it was answered with OK."),
        ("prompt('Name?', 'Ada')", "Ada", "The page asked 'Name?' for a text; it got 'Ada'."),
    ],
)
async def test_dialogs_are_accepted_and_noted(harness: BrowserHarness, script: str, result: str, note: str) -> None:
    view = await harness.open_page(f'<button onclick="p.textContent = {script}">ask</button><p id=p></p>')
    view = await (await harness.browser()).click(number_of(view.text, "ask"))
    assert note in view.notes
    assert result in view.text or result == "undefined"


async def test_dialog_during_load_is_accepted(harness: BrowserHarness) -> None:
    view = await harness.open_page("<script>alert('first')</script><p>text</p>")
    assert view.text == "text"
    assert "An alert said 'first'; it was closed." in view.notes


async def test_beforeunload_dialog_is_accepted(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<button>touch</button><script>addEventListener('beforeunload', e => e.preventDefault())</script>"
    )
    browser = await harness.browser()
    await browser.click(number_of(view.text, "touch"))
    view = await browser.navigate(harness.site.html("<p>away</p>", "/away"))
    assert view.text == "away"
    assert "The page asked whether to leave it; it was left." in view.notes


async def test_dialog_in_new_tab_is_accepted(harness: BrowserHarness) -> None:
    harness.site.html("<script>alert('welcome')</script><p>second</p>", "/second")
    view = await harness.open_page("<button onclick='window.open(\"/second\")'>open</button>")
    view = await (await harness.browser()).click(number_of(view.text, "open"))
    assert view.text == "second"


async def test_page_that_opens_many_tabs_stays_open(harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs, "MAX_TABS", 3)
    view = await harness.open_page(
        "<p>opener</p><button onclick='for (let i = 0; i < 9; i++) window.open(\"about:blank#\" + i)'>open</button>"
    )
    browser = await harness.browser()
    await browser.execute("for (let i = 0; i < 9; i++) window.open('about:blank#' + i)")
    for _ in range(tabs.MAX_TABS):
        if "opener" in (view := await browser.press_key("Control+w")).text:
            break
    assert "opener" in view.text


async def test_print_does_not_block_page(harness: BrowserHarness) -> None:
    view = await harness.open_page("<button onclick='window.print(); textContent = \"printed\"'>print</button>")
    view = await (await harness.browser()).click(number_of(view.text, "print"))
    assert "printed" in view.text
    assert (await (await harness.browser()).execute("String(window.print)")).value == "function () { [native code] }"


async def test_endless_dialogs_close_tab(harness: BrowserHarness) -> None:
    view = await harness.open_page("<button onclick='for (;;) alert(1)'>loop</button>")
    browser = await harness.browser()
    began = time.monotonic()
    view = await browser.click(number_of(view.text, "loop"))
    assert time.monotonic() - began < 10
    assert view.url == "about:blank"
    assert "its tab was closed" in " ".join(view.notes)
    assert (await harness.open_page("<p>works</p>")).text == "works"


async def test_dialog_between_actions_is_noted_in_next_snapshot(harness: BrowserHarness) -> None:
    await harness.open_page("<script>setTimeout(() => alert('later'), 300)</script><p id=p>text</p>")
    browser = await harness.browser()
    async with asyncio.timeout(30):
        while True:
            view = await browser.view()
            if view.notes:
                break
    assert view.notes == ("An alert said 'later'; it was closed.",)
    assert (await browser.view()).notes == ()
