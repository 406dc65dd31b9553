"""What is done with mouse and keyboard, and what is said when it cannot be."""

import pytest

from app.domain.errors import BrowserFailure
from app.domain.models.browser import Point
from tests.integration.browser.house import House, index

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_element_out_of_view_is_scrolled_to_and_clicked(house: House) -> None:
    view = await house.show(
        "<div style='height:3000px'>top</div><button onclick='this.textContent=\"hit\"'>far</button>"
        "<div style='height:3000px'></div>"
    )
    view = await (await house.browser()).click(index(view.text, "far"))
    assert 'button "hit"' in view.text


async def test_a_covered_element_is_not_clicked_and_what_covers_it_is_named(house: House) -> None:
    view = await house.show(
        "<button onclick='document.title=\"clicked\"'>under</button>"
        "<div style='position:fixed;inset:0;background:#fff8'>We use cookies <button>Accept</button></div>"
    )
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match=r"covered by a <div> with the text \"We use cookies Accept\"") as failure:
        await browser.click(index(view.text, "under"))
    assert failure.value.status == 409
    assert (await browser.view()).title == "Test"


async def test_a_partly_covered_element_is_clicked_where_it_is_free(house: House) -> None:
    view = await house.show(
        "<button style='width:300px;height:80px' onclick='this.textContent=\"hit\"'>wide</button>"
        "<div style='position:absolute;left:60px;top:0;width:180px;height:200px;background:#fff'></div>"
    )
    view = await (await house.browser()).click(index(view.text, "wide"))
    assert 'button "hit"' in view.text


async def test_a_disabled_element_is_not_clicked(house: House) -> None:
    view = await house.show("<button disabled>off</button>")
    with pytest.raises(BrowserFailure, match=r'disabled: \[1 button "off" disabled\]'):
        await (await house.browser()).click(index(view.text, "off"))


async def test_an_element_that_disappeared_from_sight_is_not_clicked(house: House) -> None:
    view = await house.show("<button id=b>one</button><button onclick='b.style.display=\"none\"'>hide</button>")
    browser = await house.browser()
    await browser.click(index(view.text, "hide"))
    with pytest.raises(BrowserFailure, match="cannot be seen at present"):
        await browser.click(index(view.text, "one"))


@pytest.mark.parametrize("number", [-1, 0, 7, 10**9])
async def test_a_number_that_means_nothing_gets_a_clear_word(house: House, number: int) -> None:
    await house.show("<button>one</button>")
    browser = await house.browser()
    for act in (
        browser.click(number),
        browser.input(number, "a", press_enter=False),
        browser.select_option(number, 0),
    ):
        with pytest.raises(BrowserFailure, match=rf"no element \[{number}\] .*browser_view") as failure:
            await act
        assert failure.value.status == 404


async def test_a_number_is_stale_after_navigation_even_to_the_same_page(house: House) -> None:
    view = await house.show("<button>one</button>")
    number = index(view.text, "one")
    browser = await house.browser()
    view = await browser.navigate(house.site.url("/"))
    assert index(view.text, "one") != number
    with pytest.raises(BrowserFailure, match="no element"):
        await browser.click(number)


async def test_a_number_is_stale_when_its_element_was_replaced(house: House) -> None:
    view = await house.show("<div id=d><button>one</button></div><button onclick='d.innerHTML += \"\"'>swap</button>")
    browser = await house.browser()
    await browser.click(index(view.text, "swap"))
    with pytest.raises(BrowserFailure, match="no element"):
        await browser.click(index(view.text, "one"))


async def test_a_canvas_is_clicked_by_coordinates(house: House) -> None:
    view = await house.show(
        '<style>body{margin:0}</style><canvas width=200 height=100 onclick=\'p.textContent=event.offsetX+","+'
        "event.offsetY'></canvas><p id=p></p>"
    )
    assert view.text == "[1 canvas 200x100 at 0,0]"
    view = await (await house.browser()).click(Point(x=30, y=40))
    assert "30,40" in view.text


async def test_a_place_outside_the_viewport_is_refused(house: House) -> None:
    await house.show("<p>x</p>")
    browser = await house.browser()
    for point in (Point(x=-1, y=5), Point(x=5, y=5000), Point(x=float("nan"), y=5)):
        with pytest.raises(BrowserFailure, match=r"outside the viewport, which is \d+ x \d+ pixels"):
            await browser.click(point)


async def test_the_mouse_moves_and_opens_what_opens_under_it(house: House) -> None:
    await house.show(
        "<style>body{margin:0}ul{display:none}nav:hover ul{display:block}</style>"
        "<nav>Menu<ul><li><a href=/x>Item</a></ul>"
    )
    view = await (await house.browser()).move_mouse(Point(x=20, y=10))
    assert "Item](/x)" in view.text


async def test_input_replaces_what_is_there_and_enter_sends_it(house: House) -> None:
    view = await house.show("<form><input name=q value='old words' aria-label=Query></form>")
    view = await (await house.browser()).input(index(view.text, "Query"), "new words", press_enter=True)
    assert view.url.endswith("/?q=new+words")


async def test_pages_that_follow_keystrokes_hear_them(house: House) -> None:
    view = await house.show(
        "<input aria-label=Field oninput='n.textContent++' onkeyup='k.textContent=event.key'><p id=n>0<p id=k>"
    )
    browser = await house.browser()
    view = await browser.input(index(view.text, "Field"), "hello", press_enter=False)
    assert view.text.endswith("5\n\no")
    view = await browser.input(index(view.text, "Field"), "x" * 3000 + "!", press_enter=False)
    assert view.text.endswith("7\n\n!")


@pytest.mark.parametrize(
    ("field", "words", "value"),
    [
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
    ],
)
async def test_each_kind_of_field_takes_what_it_is_for(house: House, field: str, words: str, value: str) -> None:
    view = await house.show(f"<form onchange='document.title=\"changed\"'>{field}</form><button>b</button>")
    browser = await house.browser()
    await browser.input(index(view.text, '"F"'), words, press_enter=False)
    assert (await browser.execute("document.querySelector('[aria-label=F]').value")).value == value


async def test_an_editor_without_a_field_takes_text_of_several_lines(house: House) -> None:
    view = await house.show("<div contenteditable aria-label=Editor>old <b>text</b></div>")
    browser = await house.browser()
    view = await browser.input(index(view.text, "Editor"), "first\nsecond", press_enter=False)
    assert (await browser.execute("document.querySelector('div').innerText")).value.split() == ["first", "second"]


@pytest.mark.parametrize(
    ("element", "said"),
    [
        ("<input disabled aria-label=F>", "is disabled"),
        ("<input readonly aria-label=F>", "is read-only"),
        ("<input type=checkbox aria-label=F>", "That is a checkbox: click it"),
        ("<button>F</button>", "Nothing can be typed into that button"),
        ("<select aria-label=F><option>a</select>", "choose with browser_select_option"),
        ("<input type=date aria-label=F>", "did not take 'words': it wants yyyy-mm-dd"),
        ("<input type=range aria-label=F>", "it wants a number from 0 to 100"),
    ],
)
async def test_what_cannot_be_typed_into_says_what_to_do_instead(house: House, element: str, said: str) -> None:
    view = await house.show(element)
    with pytest.raises(BrowserFailure, match=said):
        await (await house.browser()).input(index(view.text, '"F"'), "words", press_enter=False)


async def test_input_at_a_place_replaces_the_text_there(house: House) -> None:
    await house.show("<style>body{margin:0}</style><input value=old style='width:200px;height:40px'>")
    browser = await house.browser()
    await browser.input(Point(x=50, y=20), "new", press_enter=False)
    view = await browser.input(None, " and more", press_enter=False)
    assert '= "new and more"' in view.text


async def test_typing_without_a_target_reaches_a_page_that_listens_to_keys(house: House) -> None:
    await house.show("<p id=p></p><script>addEventListener('keydown', e => p.textContent += e.key)</script>")
    view = await (await house.browser()).input(None, "abc", press_enter=True)
    assert view.text == "abcEnter"


@pytest.mark.parametrize(
    ("key", "heard"),
    [
        ("Enter", "Enter"),
        ("ctrl+a", "Control a"),
        ("Control+Shift+K", "Control Shift K"),
        ("esc", "Escape"),
        ("space", " "),
        ("up", "ArrowUp"),
        ("F2", "F2"),
        ("+", "+"),
        ("é", "é"),
    ],
)
async def test_keys_are_pressed_by_the_names_that_models_give_them(house: House, key: str, heard: str) -> None:
    await house.show(
        "<pre id=p></pre><script>let all = []; addEventListener('keydown', e => {"
        " all.push(e.key); p.textContent = all.join(' ') + '.'; e.preventDefault() });"
        " addEventListener('input', e => p.textContent = e.data + '.')</script><input autofocus>"
    )
    view = await (await house.browser()).press_key(key)
    assert f"{heard}." in view.text


async def test_a_key_that_there_is_not_gets_a_clear_word(house: House) -> None:
    await house.show("<p>x</p>")
    with pytest.raises(BrowserFailure, match="There is no key 'Bogus'"):
        await (await house.browser()).press_key("Bogus")


async def test_options_are_chosen_by_number(house: House) -> None:
    view = await house.show(
        "<select aria-label=One onchange='p.textContent=value'><option>a<option value=bee>b<option disabled>c</select>"
        "<select aria-label=Many multiple><option selected>x<option>y</select><p id=p></p><button>no box</button>"
    )
    browser = await house.browser()
    one, many, other = index(view.text, '"One"'), index(view.text, '"Many"'), index(view.text, "no box")
    view = await browser.select_option(one, 1)
    assert "bee" in view.text
    view = await browser.select_option(many, 1)
    assert '"Many" = "x, y"' in view.text
    for number, option, said in (
        (one, 2, "is disabled"),
        (one, 3, "its options are 0 to 2"),
        (other, 0, r"no select box but .*button"),
    ):
        with pytest.raises(BrowserFailure, match=said):
            await browser.select_option(number, option)
    with pytest.raises(BrowserFailure, match="choose with browser_select_option"):
        await browser.click(one)


async def test_a_long_list_of_options_is_told_in_part_and_takes_any_number(house: House) -> None:
    view = await house.show(f"<select>{''.join(f'<option>option {n}' for n in range(300))}</select>")
    assert "39 option 39, … 260 more]" in view.text
    view = await (await house.browser()).select_option(1, 250)
    assert '= "option 250"' in view.text


async def test_scrolling_goes_by_almost_a_screen_and_to_the_ends(house: House) -> None:
    await house.show("<div style='height:5000px'>tall</div><p>end</p>")
    browser = await house.browser()

    async def where() -> float:
        return float((await browser.execute("scrollY / innerHeight")).value)

    await browser.scroll(down=True, to_end=False)
    assert 0.85 < await where() < 0.95
    await browser.scroll(down=False, to_end=False)
    assert await where() == 0
    view = await browser.scroll(down=False, to_end=False)
    assert view.notes == ("There is nothing further up.",)
    await browser.scroll(down=True, to_end=True)
    view = await browser.scroll(down=True, to_end=False)
    assert view.notes == ("There is nothing further down.",)


async def test_what_a_page_loads_on_scrolling_is_in_the_view(house: House) -> None:
    house.site.html("<p>more</p>", "/more")
    await house.show(
        "<div style='height:3000px'>tall</div><p id=p></p><script>addEventListener('scroll', async () => {"
        " p.textContent = await (await fetch('/more')).text() }, { once: true })</script>"
    )
    view = await (await house.browser()).scroll(down=True, to_end=True)
    assert "more" in view.text


async def test_a_click_waits_for_what_it_fetches(house: House) -> None:
    def slow(request: object) -> None:
        house.site.over.wait(0.4)
        request.send_response(200)  # type: ignore[attr-defined]
        request.end_headers()  # type: ignore[attr-defined]
        request.wfile.write(b"fetched")  # type: ignore[attr-defined]

    house.site.pages["/data"] = slow  # type: ignore[assignment]
    view = await house.show(
        "<button onclick='fetch(\"/data\").then(r => r.text()).then(t => p.textContent = t)'>load</button><p id=p>"
    )
    view = await (await house.browser()).click(index(view.text, "load"))
    assert "fetched" in view.text
