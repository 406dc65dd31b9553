"""Text in editors: it arrives whole, replaces what was there, and is shown."""

import pytest

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


@pytest.mark.parametrize("editor", [*RICH_TEXT, *CODE])
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
