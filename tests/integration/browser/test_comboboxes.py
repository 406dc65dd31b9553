"""Elements that show a value chosen in a popup: their names and values before and after a choice."""

import pytest

from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

COMBOBOXES = (
    ("<button role=combobox aria-expanded=false><span>Fig</span></button>", '[1 combobox = "Fig" collapsed]'),
    ("<label for=c>Fruit</label><button id=c role=combobox>Fig</button>", '[1 combobox "Fruit" = "Fig"]'),
    ("<div role=combobox tabindex=0 aria-label=Fruit>Fig</div>", '[1 combobox "Fruit" = "Fig"]'),
    ("<b id=l>Fruit</b><div role=combobox tabindex=0 aria-labelledby=l>Fig</div>", '[1 combobox "Fruit" = "Fig"]'),
    ("<b id=l>Fruit</b><div role=combobox aria-labelledby='l v'><i id=v>Fig</i></div>", '[1 combobox "Fruit" = "Fig"]'),
    ("<b id=l>Fruit</b><div role=combobox id=c aria-labelledby='l c'>Fig</div>", '[1 combobox "Fruit" = "Fig"]'),
    ("<div role=combobox aria-label=Fruit aria-expanded=true>Fig<ul role=listbox><li role=option>Plum</ul></div>",
     '[1 combobox "Fruit" = "Fig" expanded] Fig'),
    ("<b>Text</b><div role=combobox aria-label=Fruit><span role=textbox aria-readonly=true>Fig</span></div>",
     '[1 combobox "Fruit" = "Fig"]'),
    ("<label for=s>Fruit</label><select id=s style='display:none'></select><i><b role=combobox tabindex=0>Fig</b></i>",
     '[1 combobox "Fruit" = "Fig"]'),
    ("<div style='width:200px;cursor:pointer'><i style='opacity:0;position:absolute'><input role=combobox readonly></i>"
     "<span>Fig</span></div>", '[1 combobox = "Fig"]'),
    ("<label>Fruit <span style='display:contents'>juice</span> <input role=combobox value=Fig></label>",
     '[1 combobox "Fruit juice" = "Fig"]'),
    ("<input role=combobox aria-label=Fruit value=Fig>", '[1 combobox "Fruit" = "Fig"]'),
    ("<div role=combobox aria-label=Fruit><input value=Fig></div>", '[1 combobox "Fruit" = "Fig"]'),
    ("<b id=l>Fruit</b><button aria-haspopup=listbox aria-labelledby=l>Fig</button>", '[1 button "Fruit" = "Fig"]'),
    ("<button aria-haspopup=listbox aria-expanded=false>Fig</button>", '[1 button "Fig" collapsed]'),
    ("<select aria-label=Fruit><option>Fig<option>Plum</select>", '[1 select "Fruit" = "Fig": 0 Fig, 1 Plum]'),
    ("<select aria-label=Fruit multiple><option selected>Fig<option selected>Plum</select>",
     '[1 select "Fruit" = "Fig, Plum" multiple: 0 Fig, 1 Plum]'),
)  # fmt: skip
"""Elements whose value is Fig, and their marks."""


@pytest.mark.parametrize(("element", "mark"), COMBOBOXES)
async def test_combobox_has_name_and_value(harness: BrowserHarness, element: str, mark: str) -> None:
    assert mark in (await harness.open_page(element)).text


async def test_value_after_choice_is_shown(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<button role=combobox aria-label=Fruit onclick="list.hidden = false">Select a fruit</button>
        <ul role=listbox id=list hidden><li role=option>Fig<li role=option>Plum</ul><script>
        list.onclick = ({ target }) => {
          document.querySelector("button").textContent = target.textContent;
          list.hidden = true;
        }
        </script>"""
    )
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, '"Fruit" = "Select a fruit"'))
    view = await browser.click(number_of(view.text, 'option "Fig"'))
    assert 'combobox "Fruit" = "Fig"' in view.text


async def test_input_into_box_around_field_fills_the_field(harness: BrowserHarness) -> None:
    view = await harness.open_page("<div role=combobox aria-label=Fruit><input value=Fig></div>")
    view = await (await harness.browser()).input(number_of(view.text, "Fruit"), "Plum", press_enter=False)
    assert 'combobox "Fruit" = "Plum"' in view.text


async def test_label_of_button_is_part_of_its_name(harness: BrowserHarness) -> None:
    view = await harness.open_page("<label for=s>Wifi</label><button role=switch id=s aria-checked=true></button>")
    assert view.text == '[1 switch "Wifi" checked]'


async def test_slotted_options_of_open_combobox_are_shown(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<fruit-select><div role=option>Fig</div><div role=option>Plum</div></fruit-select><script>
        customElements.define("fruit-select", class extends HTMLElement {
          connectedCallback() {
            this.attachShadow({ mode: "open" }).innerHTML = `<div style="width: 200px; height: 60px">
              <input role=combobox aria-label=Fruit aria-expanded=true style="opacity: 0"><slot></slot></div>`;
          }
        });
        </script>"""
    )
    text = view.text
    assert text.index('combobox "Fruit" expanded') < text.index('option "Fig"') < text.index('option "Plum"')
