"""Text in editors: it arrives whole, replaces what was there, and is shown."""

import pytest

from app.domain.errors import BrowserFailure
from tests.integration.browser.browser_harness import BrowserHarness, number_of
from tests.integration.browser.libraries import LibraryPages, first_number

pytestmark = pytest.mark.asyncio(loop_scope="session")

RICH_TEXT = ("contenteditable", "draft", "lexical", "quill", "quill1", "slate", "tinymce", "tiptap", "trix")
"""Pages with an editor for rich text: it may add or drop blank lines, and shows spaces as it likes."""
CODE = ("ace", "codemirror5", "codemirror6", "easymde", "monaco")
"""Pages with an editor for code: every character counts."""
TEXTS = {
    "one line": 'Hello (world) "x" it\'s',
    "lines": "line one\nline two\nthird: ünïcode 日本語 🎉 👩‍👩‍👧‍👦",
    "code": "def f(a):\n    if a:\n        return [a, {'k': (1)}]\n\n    return \"x\"\n# end",
    "10 KB": "\n".join(f"line {number} of a long text, {'word ' * 10}end" for number in range(125)),
    "nothing": "",
}
"""Texts that replace others."""


def lines_of(text: str) -> list[str]:
    """Return the lines of rich text to compare."""
    return [line.replace("\xa0", " ").rstrip() for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("editor", [*RICH_TEXT, *CODE])
async def test_input_replaces_text_of_editor(libraries: LibraryPages, editor: str, text: str) -> None:
    await libraries.open(editor)
    await libraries.run("writeText('old words')")
    view = await libraries.browser.view()
    view = await libraries.browser.input(first_number(view, '= "old words"'), TEXTS[text], press_enter=False)
    found = await libraries.run("readText()")
    if editor in CODE:
        assert found == TEXTS[text]
    else:
        assert lines_of(found) == lines_of(TEXTS[text])
    assert view.notes == ()


@pytest.mark.parametrize("editor", ["contenteditable", "quill1", "draft", "tinymce", "codemirror5", "monaco"])
async def test_input_at_focus_continues_text_of_editor(libraries: LibraryPages, editor: str) -> None:
    await libraries.open(editor)
    await libraries.run("writeText('')")
    view = await libraries.browser.view()
    await libraries.browser.input(first_number(view, "textbox"), "one (", press_enter=False)
    await libraries.browser.input(None, "two)\nthree", press_enter=False)
    assert lines_of(await libraries.run("readText()")) == ["one (two)", "three"]


@pytest.mark.parametrize("editor", ["ace", "codemirror5", "codemirror6", "monaco"])
async def test_long_code_shows_visible_lines_and_says_there_is_more(libraries: LibraryPages, editor: str) -> None:
    await libraries.open(editor)
    await libraries.run("writeText(Array.from({ length: 500 }, (_, n) => '    item[' + n + ']').join('\\n'))")
    view = await libraries.browser.view()
    assert "more below)]\n```\n    item[0]\n    item[1]\n" in view.text
    assert "item[499]" not in view.text


async def test_input_that_editor_changes_is_noted(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<div contenteditable aria-label=Loud>old</div><script>document.querySelector('div').addEventListener("
        "'input', ({ target }) => { target.textContent = target.textContent.toUpperCase() })</script>"
    )
    view = await (await harness.browser()).input(number_of(view.text, "Loud"), "new words", press_enter=False)
    assert len(view.notes) == 1
    assert "shows another text than was given: line 1 is" in view.notes[0]


async def test_input_into_editor_that_takes_no_text_fails(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<div contenteditable aria-label=Closed>old</div><script>"
        "const editor = document.querySelector('div'); for (const type of ['beforeinput', 'keydown', 'paste'])"
        " editor.addEventListener(type, (event) => event.preventDefault())</script>"
    )
    with pytest.raises(BrowserFailure, match="did not take the text: it is unchanged"):
        await (await harness.browser()).input(number_of(view.text, "Closed"), "new", press_enter=False)


async def test_input_into_terminal_is_inserted_once_and_noted(harness: BrowserHarness) -> None:
    await harness.open_page(
        """<div style="position:relative;width:400px;height:100px"><pre id=drawn>$ ls</pre>
        <textarea aria-label=Terminal style="opacity:0;position:absolute;width:1px;height:1px"></textarea></div><script>
        const field = document.querySelector("textarea");
        field.addEventListener("keydown", (event) => event.preventDefault());
        field.addEventListener("paste", (event) => {
          event.preventDefault();
          drawn.textContent += event.clipboardData.getData("text");
        });
        </script>"""
    )
    browser = await harness.browser()
    view = await browser.view()
    view = await browser.input(number_of(view.text, 'textbox "Terminal" = "$ ls"'), " -a\ntop", press_enter=False)
    assert (await browser.execute("drawn.textContent")).value == "$ ls -a\ntop"
    assert view.notes == ("[1] does not let its text be selected: nothing was replaced, only inserted.",)
