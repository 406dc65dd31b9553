"""Mouse, keyboard and form fields, and the errors when an action is impossible."""

from http.server import BaseHTTPRequestHandler

import pytest

from app.domain.errors import BrowserFailure
from app.domain.models.browser import Point
from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

FIELDS = (
    ("<textarea aria-label=F>old</textarea>", "two\nlines\n", "two\nlines\n"),
    ("<input aria-label=F value=old>", "two\nlines", "two lines"),
    ("<input aria-label=F value=old>", "", ""),
    ("<input aria-label=F maxlength=3>", "abcdef", "abc"),
    ("<input type=email aria-label=F value=old>", "日本@例.jp", "日本@例.jp"),
    ("<input type=number aria-label=F>", "12.5", "12.5"),
    ("<input type=date aria-label=F>", "2024-02-29", "2024-02-29"),
    ("<input type=color aria-label=F>", "#ff0000", "#ff0000"),
    ("<input type=range min=0 max=10 aria-label=F>", "7", "7"),
    ("<input type=time aria-label=F>", "09:30", "09:30"),
)
"""Fields, the text that is typed into them, and their values afterwards."""

UNSUITABLE_ELEMENTS = (
    ("<input disabled aria-label=F>", "is disabled"),
    ("<input readonly aria-label=F>", "is read-only"),
    ("<input type=checkbox aria-label=F>", "That is a checkbox: click it"),
    ("<button>F</button>", "Nothing can be typed into that button"),
    ("<select aria-label=F><option>a</select>", "choose with browser_select_option"),
    ("<input type=date aria-label=F>", "does not take 'words': it takes yyyy-mm-dd. Nothing was changed"),
    ("<input type=range aria-label=F>", "it takes a number from 0 to 100. Nothing was changed"),
)
"""Elements that cannot be typed into, and parts of the errors."""

KEYS = (
    ("Enter", "Enter"),
    ("ctrl+a", "Control a"),
    ("Control+Shift+K", "Control Shift K"),
    ("esc", "Escape"),
    ("space", " "),
    ("up", "ArrowUp"),
    ("F2", "F2"),
    ("+", "+"),
    ("é", "é"),
)
"""Keys as models write them, and the keys that the page receives."""


async def test_click_element_out_of_view_scrolls_to_it(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<div style='height:3000px'>top</div><button onclick='this.textContent=\"hit\"'>far</button>"
        "<div style='height:3000px'></div>"
    )
    view = await (await harness.browser()).click(number_of(view.text, "far"))
    assert 'button "hit"' in view.text


async def test_click_covered_element_fails_and_names_the_cover(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<button onclick='document.title=\"clicked\"'>under</button>"
        "<div style='position:fixed;inset:0;background:#fff8'>We use cookies <button>Accept</button></div>"
    )
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match=r"covered by a <div> with the text \"We use cookies Accept\"") as failure:
        await browser.click(number_of(view.text, "under"))
    assert failure.value.status == 409
    assert (await browser.view()).title == "Test"


async def test_click_partly_covered_element_uses_a_free_point(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<button style='width:300px;height:80px' onclick='this.textContent=\"hit\"'>wide</button>"
        "<div style='position:absolute;left:60px;top:0;width:180px;height:200px;background:#fff'></div>"
    )
    view = await (await harness.browser()).click(number_of(view.text, "wide"))
    assert 'button "hit"' in view.text


async def test_click_disabled_element_fails(harness: BrowserHarness) -> None:
    view = await harness.open_page("<button disabled>off</button>")
    with pytest.raises(BrowserFailure, match=r'disabled: \[1 button "off" disabled\]'):
        await (await harness.browser()).click(number_of(view.text, "off"))


async def test_click_hidden_element_fails(harness: BrowserHarness) -> None:
    view = await harness.open_page("<button id=b>one</button><button onclick='b.style.display=\"none\"'>hide</button>")
    browser = await harness.browser()
    await browser.click(number_of(view.text, "hide"))
    with pytest.raises(BrowserFailure, match="cannot be seen at present"):
        await browser.click(number_of(view.text, "one"))


@pytest.mark.parametrize("number", [-1, 0, 7, 10**9])
async def test_action_on_unknown_number_fails_with_404(harness: BrowserHarness, number: int) -> None:
    await harness.open_page("<button>one</button>")
    browser = await harness.browser()
    for action in (
        browser.click(number),
        browser.input(number, "a", press_enter=False),
        browser.select_option(number, 0),
    ):
        with pytest.raises(BrowserFailure, match=rf"no element \[{number}\] .*browser_view") as failure:
            await action
        assert failure.value.status == 404


async def test_number_after_navigation_to_same_page_is_stale(harness: BrowserHarness) -> None:
    view = await harness.open_page("<button>one</button>")
    number = number_of(view.text, "one")
    browser = await harness.browser()
    view = await browser.navigate(harness.site.url("/"))
    assert number_of(view.text, "one") != number
    with pytest.raises(BrowserFailure, match="no element"):
        await browser.click(number)


async def test_number_of_replaced_element_is_stale(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<div id=d><button>one</button></div><button onclick='d.innerHTML += \"\"'>swap</button>"
    )
    browser = await harness.browser()
    await browser.click(number_of(view.text, "swap"))
    with pytest.raises(BrowserFailure, match="no element"):
        await browser.click(number_of(view.text, "one"))


async def test_click_coordinates_on_canvas(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        '<style>body{margin:0}</style><canvas width=200 height=100 onclick=\'p.textContent=event.offsetX+","+'
        "event.offsetY'></canvas><p id=p></p>"
    )
    assert view.text == "[1 canvas 200x100 at 0,0]"
    view = await (await harness.browser()).click(Point(x=30, y=40))
    assert "30,40" in view.text


async def test_click_outside_viewport_fails(harness: BrowserHarness) -> None:
    await harness.open_page("<p>x</p>")
    browser = await harness.browser()
    for point in (Point(x=-1, y=5), Point(x=5, y=5000), Point(x=float("nan"), y=5)):
        with pytest.raises(BrowserFailure, match=r"outside the viewport, which is \d+ x \d+ pixels"):
            await browser.click(point)


async def test_move_mouse_opens_hover_menu(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<style>body{margin:0}ul{display:none}nav:hover ul{display:block}</style>"
        "<nav>Menu<ul><li><a href=/x>Item</a></ul>"
    )
    view = await (await harness.browser()).move_mouse(Point(x=20, y=10))
    assert "Item](/x)" in view.text


async def test_input_with_enter_replaces_text_and_submits_form(harness: BrowserHarness) -> None:
    view = await harness.open_page("<form><input name=q value='old words' aria-label=Query></form>")
    view = await (await harness.browser()).input(number_of(view.text, "Query"), "new words", press_enter=True)
    assert view.url.endswith("/?q=new+words")


async def test_input_dispatches_key_events(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<input aria-label=Field oninput='n.textContent++' onkeyup='k.textContent=event.key'><p id=n>0<p id=k>"
    )
    browser = await harness.browser()
    view = await browser.input(number_of(view.text, "Field"), "hello", press_enter=False)
    assert view.text.endswith("5\n\no")
    view = await browser.input(number_of(view.text, "Field"), "x" * 3000 + "!", press_enter=False)
    assert view.text.endswith("7\n\n!")


async def test_input_sets_value_of_each_field_type(harness: BrowserHarness) -> None:
    browser = await harness.browser()
    for field, typed, value in FIELDS:
        view = await harness.open_page(f"<form onchange='document.title=\"changed\"'>{field}</form><button>b</button>")
        await browser.input(number_of(view.text, '"F"'), typed, press_enter=False)
        assert (await browser.execute("document.querySelector('[aria-label=F]').value")).value == value, field


async def test_input_into_contenteditable_keeps_lines(harness: BrowserHarness) -> None:
    view = await harness.open_page("<div contenteditable aria-label=Editor>old <b>text</b></div>")
    browser = await harness.browser()
    view = await browser.input(number_of(view.text, "Editor"), "first\nsecond", press_enter=False)
    assert (await browser.execute("document.querySelector('div').innerText")).value.split() == ["first", "second"]


async def test_input_into_unsuitable_element_fails_with_advice(harness: BrowserHarness) -> None:
    browser = await harness.browser()
    for element, message in UNSUITABLE_ELEMENTS:
        view = await harness.open_page(element)
        with pytest.raises(BrowserFailure, match=message):
            await browser.input(number_of(view.text, '"F"'), "words", press_enter=False)


async def test_input_at_coordinates_replaces_text(harness: BrowserHarness) -> None:
    await harness.open_page("<style>body{margin:0}</style><input value=old style='width:200px;height:40px'>")
    browser = await harness.browser()
    await browser.input(Point(x=50, y=20), "new", press_enter=False)
    view = await browser.input(None, " and more", press_enter=False)
    assert '= "new and more"' in view.text


async def test_input_without_target_types_into_page(harness: BrowserHarness) -> None:
    await harness.open_page("<p id=p></p><script>addEventListener('keydown', e => p.textContent += e.key)</script>")
    view = await (await harness.browser()).input(None, "abc", press_enter=True)
    assert view.text == "abcEnter"


async def test_press_key_accepts_common_names(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<pre id=p></pre><script>let all = []; addEventListener('keydown', e => {"
        " all.push(e.key); p.textContent = all.join(' ') + '.'; e.preventDefault() });"
        " addEventListener('input', e => p.textContent = e.data + '.')</script><input autofocus>"
    )
    browser = await harness.browser()
    for key, expected in KEYS:
        await browser.execute("all = []; p.textContent = ''")
        assert f"{expected}." in (await browser.press_key(key)).text, key


async def test_press_unknown_key_fails(harness: BrowserHarness) -> None:
    await harness.open_page("<p>x</p>")
    with pytest.raises(BrowserFailure, match="There is no key 'Bogus'"):
        await (await harness.browser()).press_key("Bogus")


async def test_select_option_by_number(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<select aria-label=One onchange='p.textContent=value'><option>a<option value=bee>b<option disabled>c</select>"
        "<select aria-label=Many multiple><option selected>x<option>y</select><p id=p></p><button>no box</button>"
    )
    browser = await harness.browser()
    one, many, other = number_of(view.text, '"One"'), number_of(view.text, '"Many"'), number_of(view.text, "no box")
    view = await browser.select_option(one, 1)
    assert "bee" in view.text
    view = await browser.select_option(many, 1)
    assert '"Many" = "x, y"' in view.text
    for number, option, message in (
        (one, 2, "is disabled"),
        (one, 3, "its options are 0 to 2"),
        (other, 0, r"no select box but .*button"),
    ):
        with pytest.raises(BrowserFailure, match=message):
            await browser.select_option(number, option)
    with pytest.raises(BrowserFailure, match="choose with browser_select_option"):
        await browser.click(one)


async def test_select_option_beyond_shown_options(harness: BrowserHarness) -> None:
    view = await harness.open_page(f"<select>{''.join(f'<option>option {n}' for n in range(300))}</select>")
    assert "39 option 39, … 260 more]" in view.text
    view = await (await harness.browser()).select_option(1, 250)
    assert '= "option 250"' in view.text


async def test_scroll_by_screen_and_to_ends(harness: BrowserHarness) -> None:
    await harness.open_page("<div style='height:5000px'>tall</div><p>end</p>")
    browser = await harness.browser()

    async def scrolled_screens() -> float:
        return float((await browser.execute("scrollY / innerHeight")).value)

    await browser.scroll(down=True, to_end=False)
    assert 0.85 < await scrolled_screens() < 0.95
    await browser.scroll(down=False, to_end=False)
    assert await scrolled_screens() == 0
    view = await browser.scroll(down=False, to_end=False)
    assert view.notes == ("There is nothing further up.",)
    await browser.scroll(down=True, to_end=True)
    view = await browser.scroll(down=True, to_end=False)
    assert view.notes == ("There is nothing further down.",)


async def test_snapshot_after_scroll_contains_lazily_loaded_text(harness: BrowserHarness) -> None:
    harness.site.html("<p>more</p>", "/more")
    await harness.open_page(
        "<div style='height:3000px'>tall</div><p id=p></p><script>addEventListener('scroll', async () => {"
        " p.textContent = await (await fetch('/more')).text() }, { once: true })</script>"
    )
    view = await (await harness.browser()).scroll(down=True, to_end=True)
    assert "more" in view.text


async def test_snapshot_after_click_contains_fetched_text(harness: BrowserHarness) -> None:
    def respond_slowly(request: BaseHTTPRequestHandler) -> None:
        harness.site.released.wait(0.4)
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"fetched")

    harness.site.pages["/data"] = respond_slowly
    view = await harness.open_page(
        "<button onclick='fetch(\"/data\").then(r => r.text()).then(t => p.textContent = t)'>load</button><p id=p>"
    )
    view = await (await harness.browser()).click(number_of(view.text, "load"))
    assert "fetched" in view.text
