"""Lists that load more rows when they are scrolled to their end."""

import threading
from http.server import BaseHTTPRequestHandler

import pytest

from app.infrastructure.browser import scrolling, tab
from tests.integration.browser.browser_harness import BrowserHarness

pytestmark = pytest.mark.asyncio(loop_scope="session")

STILL_LOADING = "The page is still loading more here: scroll down again in a moment."
AT_END = "There is nothing further down."


def serve_rows(harness: BrowserHarness, may_answer: threading.Event) -> None:
    def respond(request: BaseHTTPRequestHandler) -> None:
        may_answer.wait(30)
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"more")

    harness.site.pages["/rows"] = respond


@pytest.mark.parametrize("sign", ["none", "text", "busy", "spinner"])
async def test_scroll_to_end_waits_for_more_rows_until_there_are_none(harness: BrowserHarness, sign: str) -> None:
    answered = threading.Event()
    answered.set()
    serve_rows(harness, answered)
    await harness.open_corpus_page("feed.html", query=f"sign={sign}")
    browser = await harness.browser()
    seen = [await browser.scroll(down=True, to_end=True) for _ in range(5)]
    assert any("row 60" in view.text for view in seen)
    assert seen[-1].notes == (AT_END,)
    assert all(AT_END not in view.notes for view in seen[:2])


@pytest.mark.parametrize("sign", ["none", "text", "busy", "spinner"])
async def test_scroll_at_end_of_loading_list_says_that_it_is_loading(
    harness: BrowserHarness, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrolling, "MORE_SECONDS", 0.5)
    monkeypatch.setattr(tab, "NETWORK_SECONDS", 0.2)
    may_answer = threading.Event()
    serve_rows(harness, may_answer)
    await harness.open_corpus_page("feed.html", query=f"sign={sign}")
    browser = await harness.browser()
    await browser.scroll(down=True, to_end=True)
    view = await browser.scroll(down=True, to_end=True)
    assert view.notes == (STILL_LOADING,)
    view = await browser.scroll(down=True, to_end=False)
    assert view.notes == (STILL_LOADING,)
    may_answer.set()
    assert "row 40" in (await browser.scroll(down=True, to_end=True)).text


async def test_placeholders_of_virtual_list_are_waited_for(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<div style='height:3000px;position:relative'><div id=d style='position:absolute;bottom:0' aria-busy=true>"
        "placeholder</div></div><script>addEventListener('scroll', () => setTimeout(() => {"
        " d.textContent = 'row 1000'; d.removeAttribute('aria-busy') }, 900))</script>"
    )
    view = await (await harness.browser()).scroll(down=True, to_end=True)
    assert "row 1000" in view.text
    assert view.notes == ()


async def test_end_of_page_with_words_and_classes_of_loading_is_the_end(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<div style='height:2000px'>tall</div><div class='loading-finished'>All 20 rows are here.</div>"
        "<p>Loading times of pages: a study with many words about the subject</p><progress value=1></progress>"
    )
    browser = await harness.browser()
    await browser.scroll(down=True, to_end=True)
    assert (await browser.scroll(down=True, to_end=True)).notes == (AT_END,)
