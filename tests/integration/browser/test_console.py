"""A page's console, and scripts that the model runs in the page."""

import asyncio
import time

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import console
from tests.integration.browser.browser_harness import HANGING_SCRIPT, BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPT_VALUES = (
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
    ("const t = document.title; return t + '!' // done", "Test!"),
    ("return await Promise.resolve({ a: 1 })", '{"a":1}'),
    ("if (document.body) return; 5", "undefined"),
    ("return nothing.there", "Error: ReferenceError: nothing is not defined"),
    ("eval('return 1')", "Error: SyntaxError: Illegal return statement"),
)
"""Scripts, and how the text of their values begins."""


async def test_console_contains_messages_and_uncaught_errors(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<script>console.log('one', 2, { three: [3] }); console.warn('careful'); console.error(new Error('logged'));"
        "setTimeout(() => { throw new TypeError('thrown') }); Promise.reject(new Error('refused'))</script>"
        "<img src=/missing.png>"
    )
    lines = await (await harness.browser()).console(None)
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


async def test_console_survives_navigation(harness: BrowserHarness) -> None:
    await harness.open_page("<script>console.log('first page')</script>")
    await harness.open_page("<script>console.log('second page')</script>", path="/second")
    assert list(await (await harness.browser()).console(None)) == ["log: first page", "log: second page"]


async def test_console_returns_only_newest_lines(harness: BrowserHarness) -> None:
    await harness.open_page("<script>for (let i = 0; i < 1000; i++) console.log('line ' + i)</script>")
    browser = await harness.browser()
    lines = await browser.console(None)
    assert len(lines) <= 200
    assert lines[-1] == "log: line 999"
    assert list(await browser.console(2)) == ["log: line 998", "log: line 999"]


async def test_endless_logging_does_not_slow_next_call(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<p>x</p><script>setInterval(() => { for (let i = 0; i < 20; i++) console.log(i) }, 20)</script>"
    )
    browser = await harness.browser()
    began = time.monotonic()
    assert await browser.console(1)
    await browser.view()
    assert time.monotonic() - began < 5


async def test_execute_returns_value_as_text(harness: BrowserHarness) -> None:
    await harness.open_page("<p>words</p>")
    browser = await harness.browser()
    for script, value in SCRIPT_VALUES:
        assert (await browser.execute(script)).value.startswith(value), script


async def test_execute_cuts_large_value(harness: BrowserHarness) -> None:
    await harness.open_page("<p>x</p>")
    browser = await harness.browser()
    for script in ("'x'.repeat(10_000_000)", "Array(1e6).fill(7)", "'x'.repeat(1e6).split('')"):
        assert len((await browser.execute(script)).value) <= console.MAX_VALUE_CHARS


async def test_execute_returns_changed_page(harness: BrowserHarness) -> None:
    await harness.open_page("<p id=p>old</p>")
    result = await (await harness.browser()).execute("p.textContent = 'new'")
    assert result.page.text == "new"


async def test_execute_follows_navigation(harness: BrowserHarness) -> None:
    harness.site.html("<p>there</p>", "/there")
    await harness.open_page("<p>here</p>")
    result = await (await harness.browser()).execute("location.href = '/there'; 'gone'")
    assert (result.value, result.page.text) == ("gone", "there")


@pytest.mark.parametrize("script", ["for (;;);", "new Promise(() => {})", "await new Promise(() => {})"])
async def test_endless_script_is_stopped_and_page_stays_usable(
    harness: BrowserHarness, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "RUN_SECONDS", 0.5)
    view = await harness.open_page("<button onclick='textContent = \"works\"'>b</button>")
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match="The script was ended"):
        await browser.execute(script)
    view = await browser.click(number_of(view.text, "b"))
    assert "works" in view.text


async def test_cancelled_script_is_stopped(harness: BrowserHarness) -> None:
    await harness.open_page("<p id=p>0</p>")
    browser = await harness.browser()
    task = asyncio.create_task(browser.execute(HANGING_SCRIPT))
    await harness.wait_for_request("/begun")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await browser.execute("'again'")).value == "again"
