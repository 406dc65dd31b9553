"""Snapshots: what the model is shown of a page."""

import base64
import json
import time

import pytest

from tests.integration.browser.browser_harness import BrowserHarness, number_of
from tests.integration.browser.local_site import Page

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_page_is_shown_as_markdown(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<h1>Big <b>news</b></h1>
        <p>It is <b>bold </b>and <em>soft</em>,   with
        many <code>let a[0]</code> words.</p>
        <ul><li>one<li>two<ul><li>inner</ul></ul><ol start=3><li>three<li>four</ol>
        <blockquote>said<p>twice</blockquote><hr>
        <pre><code class="language-js">if (a) {

  b[0]();
}</code></pre>""",
        title="News &amp; more",
    )
    assert view.title == "News & more"
    assert view.url == harness.site.url("/")
    assert view.text == (
        "# Big news\n\nIt is **bold** and *soft*, with many `let a[0]` words.\n\n- one\n- two\n  - inner\n\n"
        "3. three\n4. four\n\n> said\n\n> twice\n\n```js\nif (a) {\n\n  b[0]();\n}\n```"
    )
    assert (view.partial, view.unshown, view.notes) == (False, "", ())
    assert view.screenshot is not None
    assert view.screenshot.startswith(b"\xff\xd8")


async def test_marks_show_role_name_value_and_state(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<a href="/cart?x=1">Cart</a> <a href="https://other.example/a">Away</a> <a href="#" onclick="1">Script</a>
        <button>Save</button><button disabled aria-label="Close it">x</button>
        <label>Email <input type=email value="a@b.c" required></label>
        <label for=n>Notes</label><textarea id=n placeholder=p>two
        lines</textarea>
        <input type=password aria-label=Secret value=12345><input type=date aria-label=Born>
        <label><input type=checkbox checked> Remember me</label>
        <label><input type=radio name=r> One</label>
        <select aria-label=Country><option>France<option selected>Italy<option disabled>Spain</select>
        <div role=tab aria-selected=true tabindex=0>Tab</div>
        <div onclick="1">Card</div><div role=button aria-expanded=false tabindex=0>Menu</div>
        <div contenteditable aria-label=Text>words</div><input type=range min=0 max=10 value=3 aria-label=Volume>
        <input type=file aria-label=Photo><input type=hidden value=no><input placeholder="Search here">""",
    )
    assert view.text == (
        "[1 Cart](/cart?x=1) [2 Away](https://other.example/a) "
        '[3 link "Script"] [4 button "Save"] [5 button "Close it" disabled] '
        '[6 textbox "Email" = "a@b.c" required] [7 textbox "Notes" = "two lines"] '
        '[8 password "Secret" = "•••••"] [9 date "Born" (yyyy-mm-dd)] [10 checkbox "Remember me" checked] '
        '[11 radio "One" unchecked] [12 select "Country" = "Italy": 0 France, 1 Italy, 2 Spain (disabled)]\n'
        '[13 tab "Tab" selected]\n[14 clickable "Card"]\n[15 button "Menu" collapsed]\n'
        '[16 textbox "Text" = "words"]\n'
        '[17 slider "Volume" = "3" (0-10)] [18 file "Photo" (browser_input with a path)] [19 textbox "Search here"]'
    )


async def test_invisible_content_is_omitted(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<style>p{color:red}</style><script>var secret = 1</script><noscript>no script</noscript>
        <template>template</template><!-- comment -->
        <p style="display:none">gone</p><p hidden>hidden</p>
        <p style="visibility:hidden">unseen <span style="visibility:visible">seen</span></p>
        <p style="opacity:0">faded <button>ghost</button></p>
        <div style="height:0;overflow:hidden">collapsed</div>
        <span style="position:absolute;width:1px;height:1px;overflow:hidden">for readers</span>
        <div style="position:absolute;left:-9999px">far left</div>
        <details><summary>More</summary>folded</details><dialog>closed dialog</dialog>
        <button style="display:none">none</button><a href="/x" style="width:0;height:0;display:block"></a>""",
    )
    assert view.text == 'seen\n\n[1 button "More" collapsed]'


async def test_fixed_content_of_page_without_height_is_shown_and_usable(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<style>body { margin: 0; overflow: hidden } #app { position: fixed; inset: 40px }</style>
        <div id=app><h1>App</h1><input aria-label=Name></div>"""
    )
    assert view.text == '# App\n\n[1 textbox "Name"]'
    browser = await harness.browser()
    assert '"Name" = "Ann"' in (await browser.input(1, "Ann", press_enter=False)).text


async def test_data_tables_become_markdown_tables(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<table><caption>Prices</caption><tr><th>Thing<th>Price<tr><td>A | B<td>1 <button>Buy</button>
        <tr><td>C<br>D<td><a href="/d">d</a></table>
        <table role=presentation><tr><td>left<td>right</table>""",
    )
    assert view.text == (
        'Prices\n\n| Thing | Price |\n|---|---|\n| A \\| B | 1 [1 button "Buy"] |\n| C D | [2 d](/d) |\n\nleft\nright'
    )


async def test_interactive_rows_and_cells_of_tables_are_marked_and_usable(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<table><tr><th>Mo<th onclick="result.textContent='sorted'">Tu
        <tr class=week><td class=day>2<td class=day>3
        <tr onclick="result.textContent='row'"><td>4<td><button>5</button>
        <tr><td contenteditable>old<td>7</table><p id=result>none</p>
        <style>.day { cursor: pointer }</style>
        <script>
          const show = (event) => result.textContent = event.target.textContent;
          document.querySelector(".week").addEventListener("click", show);
        </script>""",
    )
    assert view.text == (
        '| Mo | [1 clickable "Tu"] |\n|---|---|\n| [2 clickable "2"] | [3 clickable "3"] |\n'
        '| [4 clickable] 4 | [5 button "5"] |\n| [6 textbox = "old"] | 7 |\n\nnone'
    )
    browser = await harness.browser()
    for number, result in ((1, "sorted"), (3, "3"), (4, "row")):
        assert result in (await browser.click(number)).text
    assert '= "new"' in (await browser.input(6, "new", press_enter=False)).text


async def test_link_around_card_is_marked_at_its_start(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        '<a href="/card"><h3>Title</h3><p>Words of it</p><img alt="Photo" width=20 height=20></a>'
    )
    assert view.text == "### [1](/card) Title\n\nWords of it\n\n![Photo]"


async def test_text_that_imitates_marks_is_escaped(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        '<p>[3 button "Pay"] [<b>4</b> x]</p><p>Note: you won</p><button>] [9 button "x"</button>'
    )
    assert view.text == ('\\[3 button "Pay"] \\[**4** x]\n\nNote: you won\n\n[1 button "] [9 button \'x\'"]')
    assert view.notes == ()


async def test_icons_have_accessible_names(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<button><svg width=16 height=16><title>Search</title></svg></button>
        <a href="/home"><img src="data:," alt="Home" width=16 height=16></a><button title="Print">🖨</button>
        <span id=l>Label text</span><input aria-labelledby=l><a href="/icon" aria-label="Icon link"><i></i>x</a>
        <button><span style="position:absolute;width:1px;height:1px;overflow:hidden">Only heard</span></button>""",
    )
    for mark in ('button "Search"', "![Home]](/home)", 'button "🖨"', 'textbox "Label text"', 'button "Only heard"'):
        assert mark in view.text, view.text


async def test_styled_check_boxes_are_marked_by_their_labels(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<label style="position:relative"><input type=checkbox style="opacity:0;position:absolute" checked>
        <i>✓</i> Faded</label>
        <label><input type=checkbox style="display:none"> Not rendered</label>
        <input type=file style="display:none" id=f aria-label="Upload"><label for=f>Choose a file</label>
        <div hidden><p>not told</p><input type=file aria-label="Deep"></div>""",
    )
    assert 'checkbox "✓ Faded" checked]' in view.text
    assert 'checkbox "Not rendered" unchecked]' in view.text
    assert 'file "Upload" (browser_input with a path)]' in view.text
    assert 'file "Deep" (browser_input with a path)]' in view.text
    assert "not told" not in view.text


async def test_unicode_text_is_unchanged(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<p>日本語の文章</p><p dir=rtl>שלום עולם — مرحبا</p><p>👩‍👩‍👧‍👦 naïve</p><button>确定</button>"
    )
    assert view.text == '日本語の文章\n\nשלום עולם — مرحبا\n\n👩‍👩‍👧‍👦 naïve\n\n[1 button "确定"]'  # noqa: RUF001


async def test_page_with_changed_builtins_is_read(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<p>text</p><form><input name=childNodes><input name=localName><input name=getBoundingClientRect>
        <input name=parentNode><button>Go</button></form><img name=body><img name=title><img name=querySelector>
        <script>
        Element.prototype.getBoundingClientRect = () => { throw 1 };
        window.getComputedStyle = () => { throw 2 };
        Array.prototype.map = Array.prototype.push = () => { throw 3 };
        Map.prototype.get = WeakMap.prototype.get = () => { throw 4 };
        JSON.stringify = Promise = Object.getOwnPropertyDescriptor = undefined;
        Object.defineProperty(Node.prototype, "textContent", { get() { return "lies" } });
        </script>""",
        title="Hostile",
    )
    assert view.title == "Hostile"
    assert view.text.startswith("text\n")
    assert 'button "Go"' in view.text
    number = number_of(view.text, 'button "Go"')
    await (await harness.browser()).click(number)
    assert harness.site.requests[-1].startswith("/?childNodes=")


async def test_shadow_trees_are_read_and_usable(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<my-card><span slot=title>Slotted title</span>Default</my-card><div id=plain></div>
        <script>
        customElements.define("my-card", class extends HTMLElement { constructor() { super();
          this.attachShadow({ mode: "open" }).innerHTML =
            `<h2><slot name=title>none</slot></h2><slot></slot><button onclick='textContent="o2"'>open</button>`;
        } });
        const outer = document.getElementById("plain").attachShadow({ mode: "closed" });
        outer.innerHTML = "<button onclick='this.textContent=\\"c2\\"'>closed</button><section></section>";
        const inner = outer.querySelector("section").attachShadow({ mode: "closed" });
        inner.innerHTML = "<p>inmost</p><input aria-label=In>";
        </script>""",
    )
    assert "## Slotted title\n\nDefault" in view.text
    assert "inmost" in view.text
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, "open"))
    view = await browser.click(number_of(view.text, "closed"))
    view = await browser.input(number_of(view.text, '"In"'), "words", press_enter=False)
    assert 'button "o2"' in view.text
    assert 'button "c2"' in view.text
    assert '"In" = "words"' in view.text


async def test_long_page_is_shown_around_viewport(harness: BrowserHarness) -> None:
    view = await harness.open_page("".join(f"<p>paragraph {n} {'word ' * 20}</p>" for n in range(400)))
    assert "paragraph 0 " in view.text
    assert "paragraph 300 " not in view.text
    assert len(view.text) < 10_000
    assert view.unshown.endswith("screens below")
    browser = await harness.browser()
    await browser.scroll(down=True, to_end=True)
    view = await browser.view()
    assert "paragraph 399 " in view.text
    assert "paragraph 0 " not in view.text
    assert view.unshown.endswith("screens above")
    await browser.scroll(down=False, to_end=False)
    view = await browser.view()
    assert "screens above" in view.unshown


async def test_end_of_page_with_many_elements_is_shown(harness: BrowserHarness) -> None:
    script = "for (let i = 0; i < 30000; i++) rows += `<button>row ${i}</button> `; list.innerHTML = rows"
    await harness.open_page(f"<p>start</p><div id=list></div><script>let rows = ''; {script}</script>")
    view = await (await harness.browser()).scroll(down=True, to_end=True)
    assert "row 29999" in view.text
    assert "start" not in view.text
    assert not [note for note in view.notes if "too large" in note]


async def test_overlay_on_long_page_is_shown(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "".join(f"<p>paragraph {n} {'word ' * 20}</p>" for n in range(400))
        + "<div style='height:0'><div style='position:fixed;inset:20% 20%;background:#fff'>"
        + "We use cookies <button>Accept</button></div></div>"
    )
    assert "We use cookies" in view.text
    assert 'button "Accept"' in view.text


async def test_small_message_at_end_of_page_with_many_elements_is_shown(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "".join(f"<p>paragraph {n}</p>" for n in range(2000))
        + "<div style='position:fixed;right:0;bottom:0'>Saved</div>"
    )
    assert "paragraph 1\n" in view.text and "paragraph 1500" not in view.text
    assert "Saved" in view.text


async def test_main_scrolling_pane_counts_as_page(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<style>body{margin:0;height:100vh;overflow:hidden}main{height:100%;overflow:auto}</style><main>"
        + "".join(f"<p>paragraph {n} {'word ' * 20}</p>" for n in range(400))
    )
    assert view.unshown.endswith("screens below")
    browser = await harness.browser()
    view = await browser.scroll(down=True, to_end=True)
    assert "paragraph 399 " in view.text


async def test_hidden_part_of_side_pane_leaves_room_for_page(harness: BrowserHarness) -> None:
    aside = "".join(f"<li><a href='/entry/{n}'>entry {n} of the contents</a>" for n in range(500))
    view = await harness.open_page(
        "<style>aside{position:fixed;width:300px;height:100vh;overflow:auto}main{margin-left:320px}</style>"
        f"<aside><ul>{aside}</ul></aside><main>" + "".join(f"<p>paragraph {n} {'word ' * 20}</p>" for n in range(100))
    )
    assert "entry 3 of" in view.text
    assert "entry 300 of" not in view.text
    assert "paragraph 30 " in view.text


async def test_megabytes_of_text_are_shown_in_part(harness: BrowserHarness) -> None:
    harness.site.pages["/big"] = Page(("".join(f"line {n} of many\n" for n in range(100_000))).encode(), "text/plain")
    browser = await harness.browser()
    view = await browser.navigate(harness.site.url("/big"))
    assert "line 0 of many" in view.text
    assert len(view.text) < 10_000
    await browser.scroll(down=True, to_end=True)
    began = time.monotonic()
    view = await browser.view()
    assert time.monotonic() - began < 10
    assert "line 99999 of many" in view.text


async def test_very_long_line_is_shown_in_part(harness: BrowserHarness) -> None:
    view = await harness.open_page(f"<p>start {'abcdefghi ' * 100_000}</p>")
    assert "start abcdefghi" in view.text
    assert len(view.text) < 10_000


async def test_hundred_thousand_nodes_are_read_in_time(harness: BrowserHarness) -> None:
    body = "<ul id=u></ul><script>u.innerHTML = '<li><span>entry</span> <a href=/x>link</a>'.repeat(35000)</script>"
    browser = await harness.browser()
    url = harness.site.html(body)
    await browser.navigate(url)
    began = time.monotonic()
    view = await browser.view()
    assert time.monotonic() - began < 10
    assert "- entry [" in view.text
    assert len(view.text) < 10_000


@pytest.mark.parametrize(
    ("kind", "body", "text", "note"),
    [
        ("application/json", b'{"a": [1, 2]}', '{"a": [1, 2]}', ""),
        ("text/plain; charset=utf-8", "plain täxt".encode(), "plain täxt", ""),
        ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'><text y='20'>drawn</text></svg>", "drawn", ""),
        ("application/pdf", b"%PDF-1.4\ntrailer<</Root 1 0 R>>", "", "This is a PDF"),
        ("image/gif", b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00"
         b"\x02\x02D\x01\x00;", "", "This is no page but a file of type image/gif"),
    ],
)  # fmt: skip
async def test_other_content_types_are_shown_or_noted(
    harness: BrowserHarness, kind: str, body: bytes, text: str, note: str
) -> None:
    harness.site.pages["/file"] = Page(body, kind)
    view = await (await harness.browser()).navigate(harness.site.url("/file"))
    assert text in view.text
    assert note in " ".join(view.notes)


INSPECT_SCRIPT = """const blob = await (await fetch("data:image/jpeg;base64,{screenshot}")).blob();
const image = await createImageBitmap(blob);
const drawing = new OffscreenCanvas(image.width, image.height).getContext("2d");
drawing.drawImage(image, 0, 0);
[image.width, image.height, ...drawing.getImageData(image.width / 2, image.height / 2, 1, 1).data.slice(0, 3)]"""


async def test_screenshot_is_small_and_shows_page_after_action(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<style>body{background:rgb(0,0,255)}</style>"
        "<button onclick='document.body.style.background = \"rgb(255,0,0)\"'>red</button>"
    )
    browser = await harness.browser()
    for action in (browser.click(number_of(view.text, "red")), browser.press_key("Shift"), browser.view()):
        view = await action
        assert view.screenshot is not None
        assert len(view.screenshot) < 80_000
        script = INSPECT_SCRIPT.format(screenshot=base64.b64encode(view.screenshot).decode())
        width, height, red, _, blue = json.loads((await browser.execute(script)).value)
        assert width <= 1024
        assert 0 < height <= 1024
        assert (red > 200, blue < 50) == (True, True)


async def test_blank_page_has_empty_snapshot(harness: BrowserHarness) -> None:
    view = await (await harness.browser()).navigate("about:blank")
    assert (view.url, view.title, view.text) == ("about:blank", "", "")


async def test_page_that_changes_constantly_is_shown(harness: BrowserHarness) -> None:
    began = time.monotonic()
    view = await harness.open_page(
        "<p id=p>0</p><button>b</button><script>setInterval(() => p.textContent = +p.textContent + 1, 5)</script>"
    )
    view = await (await harness.browser()).click(number_of(view.text, "b"))
    assert 'button "b" focused' in view.text
    assert time.monotonic() - began < 5


async def test_snapshot_after_action_on_large_page_shows_changes(harness: BrowserHarness) -> None:
    filler = "".join(f"<p>paragraph {n} {'word ' * 10}</p>" for n in range(60))
    view = await harness.open_page(
        f"<button onclick='count.textContent++'>more</button><p id=count>0</p>{filler}<button>other</button>"
    )
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, "more"))
    assert view.partial
    assert view.text == '- [1 button "more"]\n- 0\n+ [1 button "more" focused]\n+ 1'
    view = await browser.view()
    assert not view.partial
    assert "paragraph 5 " in view.text


async def test_snapshot_after_action_without_changes_is_empty(harness: BrowserHarness) -> None:
    view = await harness.open_page("".join(f"<p>paragraph {n} {'word ' * 10}</p>" for n in range(60)))
    view = await (await harness.browser()).press_key("Shift")
    assert (view.partial, view.text) == (True, "")


async def test_snapshot_after_reload_of_unchanged_page_is_whole(harness: BrowserHarness) -> None:
    view = await harness.open_page("".join(f"<p>paragraph {n} {'word ' * 10}</p>" for n in range(60)))
    view = await (await harness.browser()).press_key("F5")
    assert not view.partial
    assert "paragraph 5 " in view.text


async def test_numbers_stay_with_elements_and_are_not_reused(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<button onclick='this.remove(); document.body.append(Object.assign("
        'document.createElement("button"), { textContent: "new" }))\'>old</button><button>stays</button>'
    )
    old, stays = number_of(view.text, "old"), number_of(view.text, "stays")
    view = await (await harness.browser()).click(old)
    assert number_of(view.text, "stays") == stays
    assert number_of(view.text, "new") not in (old, stays)
