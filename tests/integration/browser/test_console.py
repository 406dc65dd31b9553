"""The page's console, and scripts that the model runs."""

import asyncio
import time

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import console
from tests.integration.browser.house import HANGS, House, index

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_what_a_page_says_and_the_errors_that_nobody_caught_are_kept(house: House) -> None:
    await house.show(
        "<script>console.log('one', 2, { three: [3] }); console.warn('careful'); console.error(new Error('logged'));"
        "setTimeout(() => { throw new TypeError('thrown') }); Promise.reject(new Error('refused'))</script>"
        "<img src=/missing.png>"
    )
    lines = await (await house.browser()).console(None)
    text = "\n".join(lines)
    for words in (
        "log: one 2 {three: Array(1)}",
        "warning: careful",
        "Error: logged",
        "uncaught: TypeError: thrown",
        "uncaught: Error: refused",
        "404 (Not Found)",
    ):
        assert words in text, text


async def test_the_console_is_kept_from_page_to_page_of_a_tab(house: House) -> None:
    await house.show("<script>console.log('first page')</script>")
    await house.show("<script>console.log('second page')</script>", path="/second")
    assert list(await (await house.browser()).console(None)) == ["log: first page", "log: second page"]


async def test_only_the_newest_lines_are_kept_and_given(house: House) -> None:
    await house.show("<script>for (let i = 0; i < 1000; i++) console.log('line ' + i)</script>")
    browser = await house.browser()
    lines = await browser.console(None)
    assert len(lines) <= 200
    assert lines[-1] == "log: line 999"
    assert list(await browser.console(2)) == ["log: line 998", "log: line 999"]


async def test_a_page_that_logs_on_and_on_does_not_slow_the_next_call(house: House) -> None:
    await house.show("<p>x</p><script>setInterval(() => { for (let i = 0; i < 20; i++) console.log(i) }, 20)</script>")
    browser = await house.browser()
    began = time.monotonic()
    assert await browser.console(1)
    await browser.view()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("script", "value"),
    [
        ("1 + 1", "2"),
        ("'text'", "text"),
        ("undefined", "undefined"),
        ("null", "null"),
        ("true", "true"),
        ("NaN", "NaN"),
        ("10n", "10n"),
        ("({ a: [1, { b: null }], c: 'x' })", '{"a":[1,{"b":null}],"c":"x"}'),
        ("const x = 5; x * 2", "10"),
        ("await new Promise(done => setTimeout(() => done('later'), 20))", "later"),
        ("Promise.resolve([1, 2])", "[1,2]"),
        ("document.querySelectorAll('p')", '["<p>words</p>"]'),
        ("document.querySelector('p').textContent", "words"),
        ("new Map([['k', new Set([1])]])", '{"k":[1]}'),
        ("const o = {}; o.self = o; o", '{"self":"[circular]"}'),
        ("(function named() {})", '"[function named]"'),
        ("throw new Error('oops')", "Error: Error: oops"),
        ("nothing.there", "Error: ReferenceError: nothing is not defined"),
        ("Promise.reject(new Error('no'))", "Error: Error: no"),
        ("let 1", "Error: SyntaxError"),
        ("throw 'words'", "Error: words"),
    ],
)
async def test_a_script_answers_its_value(house: House, script: str, value: str) -> None:
    await house.show("<p>words</p>")
    result = await (await house.browser()).execute(script)
    assert result.value.startswith(value)


async def test_a_large_value_is_cut(house: House) -> None:
    await house.show("<p>x</p>")
    browser = await house.browser()
    for script in ("'x'.repeat(10_000_000)", "Array(1e6).fill(7)", "'x'.repeat(1e6).split('')"):
        assert len((await browser.execute(script)).value) <= console.MAX_VALUE


async def test_what_a_script_changes_is_in_the_page_that_comes_with_its_value(house: House) -> None:
    await house.show("<p id=p>old</p>")
    result = await (await house.browser()).execute("p.textContent = 'new'")
    assert result.page.text == "new"


async def test_a_script_that_leads_elsewhere_is_followed(house: House) -> None:
    house.site.html("<p>there</p>", "/there")
    await house.show("<p>here</p>")
    result = await (await house.browser()).execute("location.href = '/there'; 'gone'")
    assert (result.value, result.page.text) == ("gone", "there")


@pytest.mark.parametrize("script", ["for (;;);", "new Promise(() => {})", "await new Promise(() => {})"])
async def test_a_script_without_end_is_ended_and_the_page_works_on(
    house: House, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "RUN_SECONDS", 0.5)
    view = await house.show("<button onclick='textContent = \"works\"'>b</button>")
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match="The script was ended"):
        await browser.execute(script)
    view = await browser.click(index(view.text, "b"))
    assert "works" in view.text


async def test_stopping_in_the_middle_of_a_script_ends_it_and_leaves_the_browser_usable(house: House) -> None:
    await house.show("<p id=p>0</p>")
    browser = await house.browser()
    task = asyncio.create_task(browser.execute(HANGS))
    await house.asked("/begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await browser.execute("'again'")).value == "again"
