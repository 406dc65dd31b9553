"""Frames: of the same site, of another site, and nested."""

import pytest

from app.domain.errors import BrowserFailure
from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORM = """<p>inside</p><input aria-label=Name><button onclick="this.textContent = 'sent'">send</button>
<select aria-label=Size><option>S<option>L</select>"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_frame_is_shown_in_place_and_usable(harness: BrowserHarness, host: str) -> None:
    harness.site.html(FORM, "/inner", title="Inner")
    source = harness.site.url("/inner", host=host)
    view = await harness.open_page(f"<p>before</p><iframe title=Form src='{source}' height=200></iframe><p>after</p>")
    assert view.text == (
        "before\n\n(frame 'Form')\ninside\n\n"
        '[1 textbox "Name"] [2 button "send"] [3 select "Size" = "S": 0 S, 1 L]\n(end of frame)\n\nafter'
    )
    browser = await harness.browser()
    await browser.input(1, "Ada", press_enter=False)
    await browser.select_option(3, 1)
    view = await browser.click(2)
    assert '[1 textbox "Name" = "Ada"] [2 button "sent" focused] [3 select "Size" = "L"' in view.text


async def test_click_in_nested_cross_site_frames(harness: BrowserHarness) -> None:
    harness.site.html(f"<div style='height:900px'></div>{FORM}", "/inner")
    source = harness.site.url("/inner")
    harness.site.html(f"<p>middle</p><iframe src='{source}' height=120></iframe>", "/middle")
    source = harness.site.url("/middle", host="localhost")
    view = await harness.open_page(f"<div style='height:1500px'>top</div><iframe src='{source}' height=300></iframe>")
    browser = await harness.browser()
    view = await browser.scroll(down=True, to_end=True)
    view = await browser.view()
    number = number_of(view.text, "send")
    await browser.click(number)
    assert f'[{number} button "sent" focused]' in await harness.page_text()


async def test_input_without_target_types_into_focused_frame(harness: BrowserHarness) -> None:
    harness.site.html("<input aria-label=Name autofocus>", "/inner")
    source = harness.site.url("/inner", host="localhost")
    view = await harness.open_page(f"<iframe src='{source}'></iframe>")
    browser = await harness.browser()
    await browser.click(number_of(view.text, "Name"))
    view = await browser.input(None, "typed", press_enter=False)
    assert '"Name" = "typed"' in view.text


async def test_scroll_scrolls_frame_that_fills_window(harness: BrowserHarness) -> None:
    harness.site.html("".join(f"<p>line {n}</p>" for n in range(200)), "/inner")
    source = harness.site.url("/inner", host="localhost")
    view = await harness.open_page(
        f"<style>body{{margin:0;overflow:hidden}}iframe{{border:0;width:100vw;height:100vh;display:block}}</style>"
        f"<iframe src='{source}'></iframe>"
    )
    assert "line 3\n" in view.text
    assert "line 199" not in view.text
    view = await (await harness.browser()).scroll(down=True, to_end=True)
    assert "line 199" in await harness.page_text()


async def test_click_in_frame_covered_by_page_fails(harness: BrowserHarness) -> None:
    harness.site.html(FORM, "/inner")
    source = harness.site.url("/inner", host="localhost")
    view = await harness.open_page(
        f"<iframe src='{source}' height=200></iframe><div style='position:fixed;inset:0;background:#fffa'>Wait</div>"
    )
    with pytest.raises(BrowserFailure, match="covered by a <div> with the text"):
        await (await harness.browser()).click(number_of(view.text, "send"))


async def test_frame_navigation_makes_only_its_numbers_stale(harness: BrowserHarness) -> None:
    harness.site.html(FORM, "/inner")
    harness.site.html("<button>other</button>", "/other")
    source = harness.site.url("/inner")
    view = await harness.open_page(
        f"<iframe name=f src='{source}'></iframe><a href='/other' target=f>switch</a><button>stays</button>"
    )
    browser = await harness.browser()
    send = number_of(view.text, "send")
    view = await browser.click(number_of(view.text, "switch"))
    assert 'button "other"' in view.text
    with pytest.raises(BrowserFailure, match=rf"no element \[{send}\]") as failure:
        await browser.click(send)
    assert failure.value.status == 404
    await browser.click(number_of(view.text, "stays"))


async def test_snapshot_omits_unresponsive_frame(harness: BrowserHarness) -> None:
    harness.site.html(
        "<p>busy</p><script>onmessage = () => { for (;;); }; parent.postMessage('up', '*')</script>", "/busy"
    )
    source = harness.site.url("/busy", host="localhost")
    view = await harness.open_page(
        f"<p>around</p><iframe id=f src='{source}'></iframe>"
        "<button onclick='f.contentWindow.postMessage(1, \"*\")'>hang</button>"
    )
    assert "busy" in view.text
    view = await (await harness.browser()).click(number_of(view.text, "hang"))
    assert "around" in view.text
