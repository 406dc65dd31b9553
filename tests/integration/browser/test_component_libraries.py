"""Select boxes and date pickers of component libraries: what they show before and after a choice."""

import pytest

from app.domain.errors import BrowserFailure
from tests.integration.browser.libraries import LibraryPages, first_number

pytestmark = pytest.mark.asyncio(loop_scope="session")

SELECTS = (
    ("radix", 'combobox "Fruit" = "Select a fruit" collapsed', "Banana", "chosen", 'combobox "Fruit" = "Banana"'),
    ("headlessui", 'button "Fruit" = "Apple" collapsed', "Banana", "chosen", 'button "Fruit" = "Banana"'),
    ("mui", 'combobox "Fruit" = "Apple" collapsed', "Banana", "chosen", 'combobox "Fruit" = "Banana"'),
    ("mui", 'combobox "Snacks" = "Apple" collapsed', "Cherry", "snacks", 'combobox "Snacks" = "Apple, Cherry"'),
    ("mui", 'combobox "Color" collapsed', "Green", "color", 'combobox "Color" = "Green"'),
    ("antd", 'combobox "Fruit" = "Apple" collapsed', "Banana", "chosen", 'combobox "Fruit" = "Banana"'),
    ("antd", 'combobox "Many" = "Pick one" collapsed', "Option 3", "many", 'combobox "Many" = "Option 3"'),
    ("react-select", 'combobox "Fruit" = "Select..." collapsed', "Banana", "chosen", 'combobox "Fruit" = "Banana"'),
)
"""Pages; marks before a choice; options; the script for the value; and marks afterwards."""


@pytest.mark.parametrize(("page", "before", "option", "value", "after"), SELECTS)
async def test_choice_in_select_is_shown(
    libraries: LibraryPages, page: str, before: str, option: str, value: str, after: str
) -> None:
    await libraries.open(page, again=True)
    view = await libraries.choose(before, f'"{option}"')
    assert option.split()[-1] in await libraries.run(value)
    view = await libraries.browser.view()
    assert after in view.text


@pytest.mark.parametrize(
    ("page", "mark", "typed", "option", "value"),
    [
        ("headlessui", '"Snack"', "ban", "Banana", "snack"),
        ("mui", '"Color"', "blu", "Blue", "color"),
        ("antd", '"Many"', "777", "Option 777", "many"),
        ("react-select", '"Fruit"', "che", "Cherry", "chosen"),
    ],
)
async def test_typing_filters_options(
    libraries: LibraryPages, page: str, mark: str, typed: str, option: str, value: str
) -> None:
    view = await libraries.open(page, again=True)
    await libraries.browser.input(first_number(view, mark), typed, press_enter=False)
    view = await libraries.browser.view()
    await libraries.browser.click(first_number(view, f'"{option}"'))
    assert option.split()[-1] in await libraries.run(value)


@pytest.mark.parametrize("page", ["antd", "react-select"])
async def test_several_values_are_shown_and_removed(libraries: LibraryPages, page: str) -> None:
    await libraries.open(page, again=True)
    view = await libraries.choose('"Tags"', '"Cherry"')
    assert "Apple" in await libraries.run("tags")
    await libraries.browser.press_key("Escape")
    view = await libraries.browser.view()
    assert view.text.index("Apple") < view.text.index("Cherry")
    remove = '"close"' if page == "antd" else '"Remove Apple"'
    await libraries.browser.click(first_number(view, remove))
    assert "Apple" not in await libraries.run("tags")


async def test_virtual_list_shows_its_next_options_after_keys(libraries: LibraryPages) -> None:
    view = await libraries.open("antd", again=True)
    view = await libraries.browser.click(first_number(view, '"Many"'))
    view = await libraries.browser.view()
    assert '"Option 5"' in view.text
    assert '"Option 999"' not in view.text
    await libraries.browser.press_key("ArrowUp")
    view = await libraries.browser.view()
    assert '"Option 999"' in view.text


async def test_day_in_date_picker_is_chosen(libraries: LibraryPages) -> None:
    await libraries.open("flatpickr", again=True)
    view = await libraries.choose('"Day" = "2026-01-05"', '"January 21, 2026"')
    assert '"Day" = "2026-01-21"' in (await libraries.browser.view()).text, view.text


async def test_slider_is_moved_to_the_nearest_value(libraries: LibraryPages) -> None:
    view = await libraries.open("antd", again=True)
    low, high = (first_number(view, f'slider "{name}"') for name in ("Low", "High"))
    view = await libraries.browser.input(low, "55", press_enter=False)
    assert (await libraries.run("limits"), view.notes) == ("[55,80]", ())
    view = await libraries.browser.input(high, "62", press_enter=False)
    assert await libraries.run("limits") == "[55,60]"
    assert view.notes == (f"[{high}] is at 60 now: the arrow keys bring it no nearer to 62.",)
    with pytest.raises(BrowserFailure, match=r"it takes a number from 0 to 100\. Nothing was changed"):
        await libraries.browser.input(low, "155", press_enter=False)
    assert await libraries.run("limits") == "[55,60]"
