"""Drawings (SVG): their interactive shapes are numbered and can be clicked."""

import pytest

from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

SHAPES = (
    ('<g style="cursor:pointer" {click}><rect width="40" height="40"/></g>', "clickable g at "),
    ('<g {click}><title>Group</title><circle r="9" cx="60" cy="60"/><circle r="9" cx="10" cy="10"/></g>', '"Group"'),
    ('<rect role="button" tabindex="0" aria-label="B" width="40" height="40" {click}/>', 'button "B"'),
    ('<circle tabindex="0" r="20" cx="30" cy="30" {click}/>', "clickable circle at "),
    ('<path id="france" d="M0 0h9v9z" transform="rotate(30) translate(40 9) scale(3)" {click}/>', '"france"'),
    ('<path d="M50 5A45 45 0 1 1 49 5" fill="none" stroke="red" {click}><title>Ring</title></path>', '"Ring"'),
    ('<line x1="5" y1="5" x2="95" y2="80" stroke="blue" data-name="Thin" {click}/>', '"Thin"'),
    ('<svg x="50" y="50" width="20" height="20"><rect width="9" height="9" {click}/></svg>', "clickable rect at "),
    ('<defs><circle id="d" r="9"/></defs><use href="#d" x="50" y="50" {click}/>', "clickable use at "),
    ('<a href="#x" {click}><text y="50">Link</text></a>', 'link "Link"'),
    ('<a xlink:href="/there"><text y="50">Old</text></a>', "Old](/there)"),
    ('<foreignObject width="90" height="90"><button {click}>Html</button></foreignObject>', 'button "Html"'),
)
"""Interactive shapes, and parts of their marks."""


@pytest.mark.parametrize(("shape", "mark"), SHAPES, ids=[mark for _, mark in SHAPES])
async def test_interactive_shape_is_numbered_and_clicked(harness: BrowserHarness, shape: str, mark: str) -> None:
    click = "onclick=\"document.title = 'clicked'\""
    harness.site.html("there", "/there", title="clicked")
    view = await harness.open_page(f'<svg width="300" height="300" viewBox="0 0 100 100">{shape.format(click=click)}')
    view = await (await harness.browser()).click(number_of(view.text, mark))
    assert view.title == "clicked"


async def test_shapes_with_pointer_cursor_are_numbered_with_their_texts(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        """<style>.bar { cursor: pointer }</style>
        <svg width="200" height="100" aria-label="Sales"><text y="20">2024</text>
        <rect class="bar" aria-label="May" width="20" height="50"/>
        <g class="bar"><rect x="40" width="20" height="50"/><text x="40" y="90">June</text></g>
        <rect class="bar" style="display:none" width="20" height="50"/></svg>"""
    )
    assert view.text == '![Sales] 2024 [1 clickable "May"] [2 clickable "June"]'


async def test_bars_of_chart_are_numbered_one_by_one(harness: BrowserHarness) -> None:
    bars = "".join(f'<rect data-name="bar {n}" x="{n * 30}" width="20" height="90"/>' for n in range(3))
    view = await harness.open_page(f'<svg width="200" height="100"><g style="cursor:pointer">{bars}</g></svg>')
    assert view.text == '[1 clickable "bar 0"] [2 clickable "bar 1"] [3 clickable "bar 2"]'


async def test_icon_is_not_numbered_inside_its_button(harness: BrowserHarness) -> None:
    icon = '<svg width="16" height="16" style="cursor:pointer"><path d="M0 0h16v16z" onclick="1" tabindex="0"/></svg>'
    view = await harness.open_page(f'<button aria-label="Go">{icon}</button> <a href="/a">{icon} Away</a>')
    assert view.text == '[1 button "Go"] [2 Away](/a)'


async def test_clickable_icon_is_numbered_once(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        '<svg width="16" height="16" style="cursor:pointer"><title>Star</title><path d="M0 0h16v16z"/></svg>'
    )
    assert view.text == '[1 clickable "Star"]'


async def test_drawing_without_interactive_shapes_is_one_picture(harness: BrowserHarness) -> None:
    view = await harness.open_page('<svg width="50" height="50"><title>Logo</title><path d="M0 0h50v50z"/></svg>')
    assert view.text == "![Logo]"
