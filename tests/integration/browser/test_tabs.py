"""Tabs, pop-ups and dialogs."""

import asyncio
import time

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import tabs
from tests.integration.browser.house import House, index

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    "opener",
    [
        "<a href='/second' target=_blank>open</a>",
        "<a href='/second' target=_blank rel=noopener>open</a>",
        '<button onclick=\'window.open("/second", "w", "width=300,height=300")\'>open</button>',
    ],
)
async def test_a_new_tab_is_in_front_and_closing_it_returns_to_the_one_before(house: House, opener: str) -> None:
    house.site.html("<p>second page</p>", "/second")
    view = await house.show(f"<p>first page</p>{opener}")
    browser = await house.browser()
    view = await browser.click(index(view.text, "open"))
    assert view.text == "second page"
    assert f"A new tab was opened and is in front: {house.site.url('/second')}" in view.notes[0]
    view = await browser.press_key("Control+w")
    assert "first page" in view.text
    assert view.notes == ("The tab was closed; the one before it is in front again.",)
    await browser.click(index(view.text, "open"))


async def test_a_page_that_closes_itself_returns_to_its_opener(house: House) -> None:
    house.site.html("<button onclick='window.close()'>close me</button>", "/second")
    view = await house.show("<p>first</p><button onclick='window.open(\"/second\")'>open</button>")
    browser = await house.browser()
    view = await browser.click(index(view.text, "open"))
    view = await browser.click(index(view.text, "close me"))
    assert view.text.startswith("first")


async def test_a_tab_whose_server_does_not_answer_is_told_of_and_not_waited_for_long(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tabs, "POPUP_SECONDS", 0.5)
    house.site.pages["/hangs"] = house.site.never()
    view = await house.show("<p>first</p><button onclick='window.open(\"/hangs\")'>open</button>")
    began = time.monotonic()
    view = await (await house.browser()).click(index(view.text, "open"))
    assert time.monotonic() - began < 5
    assert "first" in view.text
    assert "its server has not answered yet" in " ".join(view.notes)


async def test_the_numbers_of_another_tab_do_not_count(house: House) -> None:
    house.site.html("<button>there</button>", "/second")
    view = await house.show("<button onclick='window.open(\"/second\")'>open</button><button>here</button>")
    here = index(view.text, "here")
    browser = await house.browser()
    await browser.click(index(view.text, "open"))
    with pytest.raises(BrowserFailure, match="no element"):
        await browser.click(here)


async def test_keys_turn_through_the_tabs_and_open_another(house: House) -> None:
    await house.show("<p>first</p>")
    browser = await house.browser()
    view = await browser.press_key("ctrl+t")
    assert view.url == "about:blank"
    await browser.navigate(house.site.html("<p>second</p>", "/second"))
    assert "first" in (await browser.press_key("Control+Tab")).text
    assert "second" in (await browser.press_key("Control+Shift+Tab")).text


async def test_without_any_tab_there_is_a_blank_one(house: House) -> None:
    await house.show("<p>only</p>")
    browser = await house.browser()
    view = await browser.press_key("Control+w")
    assert view.url == "about:blank"
    assert (await house.show("<p>again</p>")).text == "again"


async def test_tabs_do_not_pile_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs, "MOST_TABS", 4)
    await house.show("<p>first</p>")
    browser = await house.browser()
    for _ in range(5):
        view = await browser.press_key("Control+t")
    assert "the oldest was closed" in " ".join(view.notes)
    async with asyncio.timeout(30):
        while len(await asyncio.to_thread(house.chromium.tabs)) > 4:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("script", "result", "noted"),
    [
        ("alert('Hello\\nyou')", "undefined", "An alert said 'Hello you'; it was closed."),
        ("confirm('Sure?')", "true", "The page asked 'Sure?'; it was answered with OK."),
        ("prompt('Name?', 'Ada')", "Ada", "The page asked 'Name?' for a text; it got 'Ada'."),
    ],
)
async def test_dialogs_are_answered_at_once_and_told(house: House, script: str, result: str, noted: str) -> None:
    view = await house.show(f'<button onclick="p.textContent = {script}">ask</button><p id=p></p>')
    view = await (await house.browser()).click(index(view.text, "ask"))
    assert noted in view.notes
    assert result in view.text or result == "undefined"


async def test_a_dialog_while_the_page_loads_does_not_hold_it_up(house: House) -> None:
    view = await house.show("<script>alert('first')</script><p>text</p>")
    assert view.text == "text"
    assert "An alert said 'first'; it was closed." in view.notes


async def test_a_page_that_asks_whether_to_leave_it_is_left(house: House) -> None:
    view = await house.show(
        "<button>touch</button><script>addEventListener('beforeunload', e => e.preventDefault())</script>"
    )
    browser = await house.browser()
    await browser.click(index(view.text, "touch"))
    view = await browser.navigate(house.site.html("<p>away</p>", "/away"))
    assert view.text == "away"
    assert "The page asked whether to leave it; it was left." in view.notes


async def test_a_dialog_of_a_tab_that_is_just_opening_does_not_hold_it_up(house: House) -> None:
    house.site.html("<script>alert('welcome')</script><p>second</p>", "/second")
    view = await house.show("<button onclick='window.open(\"/second\")'>open</button>")
    view = await (await house.browser()).click(index(view.text, "open"))
    assert view.text == "second"


async def test_a_page_that_opens_tabs_without_end_stays_in_reach(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabs, "MOST_TABS", 3)
    view = await house.show(
        "<p>opener</p><button onclick='for (let i = 0; i < 9; i++) window.open(\"about:blank#\" + i)'>open</button>"
    )
    browser = await house.browser()
    await browser.execute("for (let i = 0; i < 9; i++) window.open('about:blank#' + i)")
    for _ in range(tabs.MOST_TABS):
        if "opener" in (view := await browser.press_key("Control+w")).text:
            break
    assert "opener" in view.text


async def test_a_page_that_prints_itself_is_not_held_up(house: House) -> None:
    view = await house.show("<button onclick='window.print(); textContent = \"printed\"'>print</button>")
    view = await (await house.browser()).click(index(view.text, "print"))
    assert "printed" in view.text
    assert (await (await house.browser()).execute("String(window.print)")).value == "() => {}"


async def test_a_page_that_asks_without_end_loses_its_tab(house: House) -> None:
    view = await house.show("<button onclick='for (;;) alert(1)'>loop</button>")
    browser = await house.browser()
    began = time.monotonic()
    view = await browser.click(index(view.text, "loop"))
    assert time.monotonic() - began < 10
    assert view.url == "about:blank"
    assert "its tab was closed" in " ".join(view.notes)
    assert (await house.show("<p>works</p>")).text == "works"


async def test_what_happened_between_two_calls_is_told_with_the_next(house: House) -> None:
    await house.show("<script>setTimeout(() => alert('later'), 300)</script><p id=p>text</p>")
    browser = await house.browser()
    async with asyncio.timeout(30):
        while True:
            view = await browser.view()
            if view.notes:
                break
    assert view.notes == ("An alert said 'later'; it was closed.",)
    assert (await browser.view()).notes == ()
