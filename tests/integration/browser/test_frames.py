"""Frames: of the same site, of another, within one another."""

import pytest

from app.domain.errors import BrowserFailure
from tests.integration.browser.house import House, index

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORM = """<p>inside</p><input aria-label=Name><button onclick="this.textContent = 'sent'">send</button>
<select aria-label=Size><option>S<option>L</select>"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_frame_is_read_where_it_stands_and_used_like_the_page(house: House, host: str) -> None:
    house.site.html(FORM, "/inner", title="Inner")
    source = house.site.url("/inner", host=host)
    view = await house.show(f"<p>before</p><iframe title=Form src='{source}' height=200></iframe><p>after</p>")
    assert view.text == (
        "before\n\n(frame 'Form')\ninside\n\n"
        '[1 textbox "Name"] [2 button "send"] [3 select "Size" = "S": 0 S, 1 L]\n(end of frame)\n\nafter'
    )
    browser = await house.browser()
    await browser.input(1, "Ada", press_enter=False)
    await browser.select_option(3, 1)
    view = await browser.click(2)
    assert '[1 textbox "Name" = "Ada"] [2 button "sent" focused] [3 select "Size" = "L"' in view.text


async def test_frames_within_frames_of_two_sites_are_reached_through_each_other(house: House) -> None:
    house.site.html(f"<div style='height:900px'></div>{FORM}", "/inner")
    source = house.site.url("/inner")
    house.site.html(f"<p>middle</p><iframe src='{source}' height=120></iframe>", "/middle")
    source = house.site.url("/middle", host="localhost")
    view = await house.show(f"<div style='height:1500px'>top</div><iframe src='{source}' height=300></iframe>")
    browser = await house.browser()
    view = await browser.scroll(down=True, to_end=True)
    view = await browser.view()
    number = index(view.text, "send")
    await browser.click(number)
    assert f'[{number} button "sent" focused]' in await house.again()


async def test_typing_goes_to_the_focus_inside_a_frame(house: House) -> None:
    house.site.html("<input aria-label=Name autofocus>", "/inner")
    source = house.site.url("/inner", host="localhost")
    view = await house.show(f"<iframe src='{source}'></iframe>")
    browser = await house.browser()
    await browser.click(index(view.text, "Name"))
    view = await browser.input(None, "typed", press_enter=False)
    assert '"Name" = "typed"' in view.text


async def test_a_frame_that_fills_the_window_is_what_scrolls(house: House) -> None:
    house.site.html("".join(f"<p>line {n}</p>" for n in range(200)), "/inner")
    source = house.site.url("/inner", host="localhost")
    view = await house.show(
        f"<style>body{{margin:0;overflow:hidden}}iframe{{border:0;width:100vw;height:100vh;display:block}}</style>"
        f"<iframe src='{source}'></iframe>"
    )
    assert "line 3\n" in view.text
    assert "line 199" not in view.text
    view = await (await house.browser()).scroll(down=True, to_end=True)
    assert "line 199" in await house.again()


async def test_an_overlay_of_the_page_over_a_frame_is_noticed(house: House) -> None:
    house.site.html(FORM, "/inner")
    source = house.site.url("/inner", host="localhost")
    view = await house.show(
        f"<iframe src='{source}' height=200></iframe><div style='position:fixed;inset:0;background:#fffa'>Wait</div>"
    )
    with pytest.raises(BrowserFailure, match="covered by a <div> with the text"):
        await (await house.browser()).click(index(view.text, "send"))


async def test_a_frame_that_went_on_makes_its_numbers_stale_and_no_others(house: House) -> None:
    house.site.html(FORM, "/inner")
    house.site.html("<button>other</button>", "/other")
    source = house.site.url("/inner")
    view = await house.show(
        f"<iframe name=f src='{source}'></iframe><a href='/other' target=f>switch</a><button>stays</button>"
    )
    browser = await house.browser()
    send = index(view.text, "send")
    view = await browser.click(index(view.text, "switch"))
    assert 'button "other"' in view.text
    with pytest.raises(BrowserFailure, match=rf"no element \[{send}\]") as failure:
        await browser.click(send)
    assert failure.value.status == 404
    await browser.click(index(view.text, "stays"))


async def test_a_page_is_told_without_a_frame_that_does_not_answer(house: House) -> None:
    house.site.html(
        "<p>busy</p><script>onmessage = () => { for (;;); }; parent.postMessage('up', '*')</script>", "/busy"
    )
    source = house.site.url("/busy", host="localhost")
    view = await house.show(
        f"<p>around</p><iframe id=f src='{source}'></iframe>"
        "<button onclick='f.contentWindow.postMessage(1, \"*\")'>hang</button>"
    )
    assert "busy" in view.text
    view = await (await house.browser()).click(index(view.text, "hang"))
    assert "around" in view.text
