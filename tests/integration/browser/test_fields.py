"""Fields with a format, a limit or a mask: what a person means is accepted; a refusal changes nothing."""

import pytest

from app.domain.errors import BrowserFailure
from app.domain.models.browser import PageView, Point
from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

ACCEPTED = (
    ("date", "2026-01-05", "2026-01-05"),
    ("date", "Jan 5 2026", "2026-01-05"),
    ("date", "5 January 2026", "2026-01-05"),
    ("date", "Monday, January 5th, 2026", "2026-01-05"),
    ("date", "Sept. 30, 2026", "2026-09-30"),
    ("date", "2026/1/5", "2026-01-05"),
    ("date", "2026年1月5日", "2026-01-05"),
    ("date", "20260105", "2026-01-05"),
    ("date", "1/13/2026", "2026-01-13"),
    ("date", "13.1.2026", "2026-01-13"),
    ("date", "", ""),
    ("limited date", "1 May 2024", "2024-05-01"),
    ("time", "9:30", "09:30"),
    ("time", "9:30 pm", "21:30"),
    ("time", "12 AM", "00:00"),
    ("time", "noon", "12:00"),
    ("time", "21:30:15", "21:30:15"),
    ("moment", "2026-01-05 9:30", "2026-01-05T09:30"),
    ("moment", "2026-01-05T09:30", "2026-01-05T09:30"),
    ("moment", "Jan 5, 2026, 9:30 am", "2026-01-05T09:30"),
    ("moment", "Jan 5 2026 at 9 pm", "2026-01-05T21:00"),
    ("month", "January 2026", "2026-01"),
    ("month", "1/2026", "2026-01"),
    ("week", "Week 2, 2026", "2026-W02"),
    ("week", "2026W2", "2026-W02"),
    ("color", "#F00", "#ff0000"),
    ("color", "Red", "#ff0000"),
    ("color", "rgb(255, 0, 0)", "#ff0000"),
    ("color", "ff0000", "#ff0000"),
    ("slider", "60", "60"),
    ("slider", "60.0", "60"),
    ("slider", "60 %", "60"),
    ("fine slider", "-0.15", "-0.15"),
    ("number", "7", "7"),
)
"""Label of a field, the text for it, and its value afterwards."""

REFUSED = (
    ("date", "words", "it takes yyyy-mm-dd"),
    ("date", "5.1.2026", "it takes yyyy-mm-dd"),
    ("date", "1/5/2026", "it takes yyyy-mm-dd"),
    ("date", "Feb 30 2026", "it takes yyyy-mm-dd"),
    ("date", "tomorrow", "it takes yyyy-mm-dd"),
    ("limited date", "2025-01-05", "it takes yyyy-mm-dd from 2024-01-01 to 2024-12-31"),
    ("time", "9", "it takes hh:mm"),
    ("time", "25:00", "it takes hh:mm"),
    ("moment", "2026-01-05", "it takes yyyy-mm-ddThh:mm"),
    ("moment", "2026-01-05T09:30:00Z", "it takes yyyy-mm-ddThh:mm"),
    ("month", "13/2026", "it takes yyyy-mm"),
    ("week", "2026-W60", "it takes yyyy-Www"),
    ("color", "reddish", "it takes #rrggbb"),
    ("color", "rgb(255 0 0 / 50%)", "it takes #rrggbb"),
    ("slider", "55", "it takes a number from 0 to 100 in steps of 10; the nearest is 60"),
    ("slider", "155", "the nearest is 100"),
    ("slider", "half", "it takes a number from 0 to 100"),
    ("number", "seven", "it takes a number from 1 to 10, such as 12.5"),
    ("number", "1,5", "it takes a number from 1 to 10, such as 12.5"),
    ("read-only", "new", "read-only"),
    ("disabled", "new", "disabled"),
    ("in fieldset", "new", "disabled"),
    ("box", "on", "click it"),
    ("fixed", "new", "Nothing can be typed"),
    ("choice", "two", "browser_select_option"),
    ("drawn slider", "five", "it takes a number from 0 to 10."),
    ("drawn number", "five", "it takes a number. Nothing was changed."),
)
"""Label of a field, a text that it does not take, and a part of the failure."""

NOTED = (
    ("short", "abcdef", '] now holds "abc" and not all that was typed, because it takes 3 characters.'),
    ("number", "12", "does not accept its value: Value must be less than or equal to 10."),
    ("pattern", "ab", "does not accept its value: Please match the requested format."),
    ("masked", "12345", '] now holds "123-45": it formats what is typed.'),
    ("masked", "12345 and more", '] now holds "123-45" and not all that was typed.'),
)
"""Label of a field, the text that is typed, and a part of the note."""


async def value_of(harness: BrowserHarness, label: str) -> str:
    script = f"document.querySelector('[aria-label=\"{label}\"]').value"
    return (await (await harness.browser()).execute(script)).value


def field(view: PageView, label: str) -> int:
    return number_of(view.text, f'"{label}"')


async def test_unambiguous_texts_are_accepted(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    browser = await harness.browser()
    for label, text, value in ACCEPTED:
        after = await browser.input(field(view, label), text, press_enter=False)
        assert await value_of(harness, label) == value, (label, text)
        assert "changed" in after.text and after.notes == (), (label, text, after.notes)


async def test_refused_texts_change_nothing(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    browser = await harness.browser()
    before = view.text
    for label, text, message in REFUSED:
        with pytest.raises(BrowserFailure) as failure:
            await browser.input(field(view, label), text, press_enter=True)
        assert message in str(failure.value), (label, text)
    assert (await browser.view()).text == before


async def test_drawn_number_is_moved_to_the_nearest_value(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    number = field(view, "drawn number")
    browser = await harness.browser()
    for text, value, notes in (
        ("1000", "1000", ()),
        ("-22", "-20", (f"[{number}] is at -20 now: the arrow keys bring it no nearer to -22.",)),
    ):
        after = await browser.input(number, text, press_enter=False)
        assert (f'"drawn number" = "{value}"' in after.text, after.notes) == (True, notes), after.text


async def test_slider_that_ignores_keys_fails_with_its_value(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match=r"ignores the arrow keys: it stays at 3\."):
        await browser.input(field(view, "drawn slider"), "5", press_enter=False)


async def test_value_that_differs_from_the_typed_text_is_noted(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    browser = await harness.browser()
    for label, text, note in NOTED:
        after = await browser.input(field(view, label), text, press_enter=False)
        assert note in " ".join(after.notes), (label, after.notes)


async def test_input_at_point_of_unsuitable_field_does_not_click_it(harness: BrowserHarness) -> None:
    await harness.open_page("<style>*{margin:0}</style><input type=checkbox style='width:40px;height:40px'>")
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match="click it"):
        await browser.input(Point(x=20, y=20), "on", press_enter=False)
    assert "unchecked" in await harness.page_text()


async def test_option_that_does_not_exist_changes_nothing(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match="has no option 2: its options are 0 to 1"):
        await browser.select_option(field(view, "choice"), 2)
    assert "nothing changed" in await harness.page_text()


async def test_option_that_the_page_reverts_fails_with_its_state(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("fields.html")
    with pytest.raises(BrowserFailure, match=r'did not keep option 1: .*"stubborn" = "one"'):
        await (await harness.browser()).select_option(field(view, "stubborn"), 1)
