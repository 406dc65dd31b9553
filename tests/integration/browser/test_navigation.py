"""Navigation: slow and endless pages, redirects, errors, and the browser's history."""

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import actions, tab
from tests.integration.browser.browser_harness import BrowserHarness, number_of
from tests.integration.browser.local_site import Page

pytestmark = pytest.mark.asyncio(loop_scope="session")

INVALID_URLS = (
    ("http://nowhere.invalid/", "there is no host of that name"),
    ("http://127.0.0.1:1/", "browsers refuse this port"),
    ("file:///etc/passwd", "Only files of the workspace"),
    ("~/../../etc/passwd", "Only files of the workspace"),
    ("file:///%2e%2e/etc/passwd", "Only files of the workspace"),
    ("~/missing.html", "there is no such file"),
    ("javascript:alert(1)", "browser_console_exec"),
    ("chrome://crash", "chrome: URLs are not opened"),
    ("view-source:http://a.example", "view-source: URLs are not opened"),
    ("what is this", "is not a URL"),
    ("https://", "names no host"),
    ("http://a.example:port/", "names no host"),
)
"""URLs that cannot be opened, and parts of the errors."""


async def test_page_with_endless_image_is_shown_as_loading(
    harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tab, "RESOURCES_SECONDS", 0.5)
    harness.site.pages["/never.png"] = harness.site.endless()
    began = time.monotonic()
    view = await harness.open_page("<p>text</p><img src='/never.png'>")
    assert time.monotonic() - began < 5
    assert view.text == "text"
    assert "The page is still loading; this is what is there so far." in view.notes


async def test_page_with_endless_text_is_shown_as_loading(
    harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tab, "TEXT_SECONDS", 0.5)
    harness.site.pages["/stream"] = harness.site.endless(b"<title>Stream</title><p>first part" + b" " * 2000)
    began = time.monotonic()
    view = await (await harness.browser()).navigate(harness.site.url("/stream"))
    assert time.monotonic() - began < 5
    assert view.text == "first part"
    assert "still loading" in view.notes[0]
    monkeypatch.setattr(tab, "TEXT_SECONDS", 60)
    assert (await (await harness.browser()).view()).text == "first part"
    assert time.monotonic() - began < 10


async def test_navigate_to_silent_server_times_out_and_keeps_page(
    harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "NAVIGATE_SECONDS", 1.0)
    harness.site.pages["/hangs"] = harness.site.endless()
    await harness.open_page("<p>before</p>")
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match=r"/hangs did not answer within 1 s"):
        await browser.navigate(harness.site.url("/hangs"))
    view = await browser.view()
    assert view.text == "before"
    assert view.notes == ()


async def test_click_waits_for_slow_server(harness: BrowserHarness) -> None:
    harness.site.html("<p>slow page</p>", "/there")
    there = harness.site.pages["/there"]

    def respond_slowly(request: BaseHTTPRequestHandler) -> None:
        harness.site.released.wait(1)
        harness.site.pages["/slow"] = there
        harness.site.respond(request)

    harness.site.pages["/slow"] = respond_slowly
    view = await harness.open_page("<button onclick='location=\"/slow\"'>go</button>")
    view = await (await harness.browser()).click(number_of(view.text, "go"))
    assert view.text == "slow page"


async def test_click_follows_delayed_navigation(harness: BrowserHarness) -> None:
    harness.site.html("<p>arrived</p>", "/there")
    view = await harness.open_page("<button onclick='setTimeout(() => location=\"/there\", 30)'>go</button>")
    view = await (await harness.browser()).click(number_of(view.text, "go"))
    assert view.text == "arrived"


async def test_navigate_follows_server_and_script_redirects(harness: BrowserHarness) -> None:
    harness.site.html("<p>arrived</p>", "/end")
    harness.site.html("<script>location.replace('/end')</script>", "/script")
    harness.site.html("<meta http-equiv=refresh content='0;url=/script'>", "/refresh")
    harness.site.pages["/start"] = harness.site.redirect("/refresh")
    view = await (await harness.browser()).navigate(harness.site.url("/start"))
    assert (view.text, view.url) == ("arrived", harness.site.url("/end"))


async def test_navigate_endless_redirects_fails(harness: BrowserHarness) -> None:
    harness.site.pages["/loop"] = harness.site.redirect("/loop")
    with pytest.raises(BrowserFailure, match=r"it redirects without end \(ERR_TOO_MANY_REDIRECTS\)"):
        await (await harness.browser()).navigate(harness.site.url("/loop"))


async def test_navigate_endless_script_redirects_ends(harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tab, "MAX_SCRIPT_REDIRECTS", 2)
    harness.site.html("<p>again</p><script>location.replace('/loop?' + Math.random())</script>", "/loop")
    browser = await harness.browser()
    began = time.monotonic()
    try:
        view = await browser.navigate(harness.site.url("/loop"))
        assert "again" in view.text or view.notes  # a page that was stopped early has no text yet, and a note says so
    except BrowserFailure as failure:
        assert "navigated elsewhere" in str(failure)
    assert time.monotonic() - began < 25
    assert (await harness.open_page("<p>calm</p>", path="/calm")).text == "calm"


async def test_navigate_invalid_url_fails_and_leaves_browser_usable(harness: BrowserHarness) -> None:
    browser = await harness.browser()
    for url, message in INVALID_URLS:
        with pytest.raises(BrowserFailure, match=message):
            await browser.navigate(url)
        assert (await harness.open_page("<p>works</p>")).text == "works", url


async def test_navigate_to_broken_server_fails_with_reason(harness: BrowserHarness) -> None:
    harness.site.pages["/rude"] = lambda request: request.connection.close()
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match=r"the server (sent nothing|broke off|closed)"):
        await browser.navigate(harness.site.url("/rude"))
    with pytest.raises(BrowserFailure, match="nothing listens there"):
        await browser.navigate("127.0.0.1:2")


async def test_navigate_with_basic_authentication(harness: BrowserHarness) -> None:
    harness.site.html("<p>secret</p>", "/inside")

    def require_password(request: BaseHTTPRequestHandler) -> None:
        if request.headers["Authorization"]:
            harness.site.pages["/locked"] = harness.site.pages["/inside"]
            harness.site.respond(request)
            return
        request.send_response(401)
        request.send_header("WWW-Authenticate", "Basic realm=x")
        request.send_header("Content-Length", "0")
        request.end_headers()

    harness.site.pages["/locked"] = require_password
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match="/locked wants a user name and a password for 'x'"):
        await browser.navigate(harness.site.url("/locked"))
    view = await browser.navigate(harness.site.url("/locked", host="name:word@127.0.0.1"))
    assert view.text == "secret"
    assert "word" not in view.url


async def test_navigate_without_scheme_finds_plain_http(harness: BrowserHarness) -> None:
    harness.site.html("<p>plain</p>")
    view = await (await harness.browser()).navigate(f"localhost:{harness.site.port}")
    assert view.text == "plain"


async def test_navigate_to_workspace_files_and_data_urls(harness: BrowserHarness) -> None:
    (harness.home / "page one.html").write_text("<title>File</title><p>from a file</p>")
    browser = await harness.browser()
    for path in ("~/page one.html", "/home/ubuntu/page one.html", (harness.home / "page one.html").as_uri()):
        view = await browser.navigate(path)
        assert (view.title, view.text, view.url) == ("File", "from a file", "~/page one.html")
    with pytest.raises(BrowserFailure, match=r"^~/missing.html cannot be opened"):
        await browser.navigate("~/missing.html")
    assert (await browser.navigate("data:text/html,<p>data</p>")).text == "data"


async def test_http_error_page_is_shown_with_status(harness: BrowserHarness) -> None:
    harness.site.html("<p>Sorry</p>", "/broken", status=503)
    browser = await harness.browser()
    view = await browser.navigate(harness.site.url("/broken"))
    assert (view.text, view.notes) == ("Sorry", ("The server answered with HTTP status 503.",))
    assert (await browser.view()).notes == ()


async def test_empty_response_keeps_previous_page(harness: BrowserHarness) -> None:
    harness.site.pages["/nothing"] = Page(b"", status=204)
    await harness.open_page("<p>before</p>")
    view = await (await harness.browser()).navigate(harness.site.url("/nothing"))
    assert view.text == "before"
    assert view.notes == ("The server's response has nothing to show: this is the previous page.",)


async def test_keys_go_back_forward_and_reload(harness: BrowserHarness) -> None:
    first, second = harness.site.html("<p>first</p>", "/1"), harness.site.html("<p>second</p>", "/2")
    browser = await harness.browser()
    await browser.navigate(first)
    await browser.navigate(second)
    assert (await browser.press_key("Alt+Left")).text == "first"
    assert (await browser.press_key("alt+ArrowRight")).text == "second"
    with pytest.raises(BrowserFailure, match="no page to go forward to"):
        await browser.press_key("Alt+ArrowRight")
    harness.site.html("<p>changed</p>", "/2")
    assert (await browser.press_key("F5")).text == "changed"


async def test_same_document_navigation_keeps_numbers(harness: BrowserHarness) -> None:
    view = await harness.open_page("<a href='#below'>down</a><div style='height:3000px'></div><p id=below>below</p>")
    browser = await harness.browser()
    number = number_of(view.text, "down")
    view = await browser.click(number)
    assert "below" in view.text
    view = await browser.navigate(harness.site.url("/#below"))
    await browser.click(number)


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[int]:
    """The port of a server with a self-signed certificate."""
    import subprocess

    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split()
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


async def test_navigate_untrusted_certificate_fails(harness: BrowserHarness, self_signed: int) -> None:
    browser = await harness.browser()
    with pytest.raises(BrowserFailure, match="the browser does not trust the issuer of the certificate"):
        await browser.navigate(f"https://localhost:{self_signed}/")


async def test_navigate_https_to_plain_server_fails(harness: BrowserHarness) -> None:
    with pytest.raises(BrowserFailure, match=r"does not speak TLS there; http:// may work"):
        await (await harness.browser()).navigate(f"https://127.0.0.1:{harness.site.port}/")
