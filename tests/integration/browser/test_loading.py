"""Pages on their way: slow ones, endless ones, those that do not come."""

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.domain.errors import BrowserFailure
from app.infrastructure.browser import navigating, settle
from tests.integration.browser.house import House, index
from tests.integration.browser.site import Page

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_page_whose_parts_never_come_is_told_as_far_as_it_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "REST_SECONDS", 0.5)
    house.site.pages["/never.png"] = house.site.never()
    began = time.monotonic()
    view = await house.show("<p>text</p><img src='/never.png'>")
    assert time.monotonic() - began < 5
    assert view.text == "text"
    assert "The page is still loading; this is what is there so far." in view.notes


async def test_a_page_whose_text_never_ends_is_told_as_far_as_it_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "TEXT_SECONDS", 0.5)
    house.site.pages["/stream"] = house.site.never(b"<title>Stream</title><p>first part" + b" " * 2000)
    began = time.monotonic()
    view = await (await house.browser()).navigate(house.site.url("/stream"))
    assert time.monotonic() - began < 5
    assert view.text == "first part"
    assert "still loading" in view.notes[0]


async def test_a_server_that_says_nothing_is_given_up_and_the_page_before_stays(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(navigating, "COMMIT_SECONDS", 1.0)
    house.site.pages["/hangs"] = house.site.never()
    await house.show("<p>before</p>")
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match=r"/hangs did not answer within 1 s"):
        await browser.navigate(house.site.url("/hangs"))
    view = await browser.view()
    assert view.text == "before"
    assert view.notes == ()


async def test_a_slow_server_is_waited_for(house: House) -> None:
    house.site.html("<p>slow page</p>", "/there")
    there = house.site.pages["/there"]

    def slow(request: BaseHTTPRequestHandler) -> None:
        house.site.over.wait(1)
        house.site.pages["/slow"] = there
        house.site.answer(request)

    house.site.pages["/slow"] = slow
    view = await house.show("<button onclick='location=\"/slow\"'>go</button>")
    view = await (await house.browser()).click(index(view.text, "go"))
    assert view.text == "slow page"


async def test_a_click_that_leads_elsewhere_after_a_moment_is_followed(house: House) -> None:
    house.site.html("<p>arrived</p>", "/there")
    view = await house.show("<button onclick='setTimeout(() => location=\"/there\", 30)'>go</button>")
    view = await (await house.browser()).click(index(view.text, "go"))
    assert view.text == "arrived"


async def test_redirects_by_the_server_and_by_scripts_are_followed(house: House) -> None:
    house.site.html("<p>arrived</p>", "/end")
    house.site.html("<script>location.replace('/end')</script>", "/script")
    house.site.html("<meta http-equiv=refresh content='0;url=/script'>", "/refresh")
    house.site.pages["/start"] = house.site.redirect("/refresh")
    view = await (await house.browser()).navigate(house.site.url("/start"))
    assert (view.text, view.url) == ("arrived", house.site.url("/end"))


async def test_endless_redirects_are_told_in_words(house: House) -> None:
    house.site.pages["/loop"] = house.site.redirect("/loop")
    with pytest.raises(BrowserFailure, match=r"it redirects without end \(ERR_TOO_MANY_REDIRECTS\)"):
        await (await house.browser()).navigate(house.site.url("/loop"))


async def test_a_page_that_goes_on_to_itself_without_end_comes_to_a_view_or_a_word(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "MOST_ROUNDS", 2)
    house.site.html("<p>again</p><script>location.replace('/loop?' + Math.random())</script>", "/loop")
    browser = await house.browser()
    began = time.monotonic()
    try:
        view = await browser.navigate(house.site.url("/loop"))
        assert "again" in view.text + " ".join(view.notes)
    except BrowserFailure as failure:
        assert "went on to another" in str(failure)
    assert time.monotonic() - began < 25
    assert (await house.show("<p>calm</p>", path="/calm")).text == "calm"


@pytest.mark.parametrize(
    ("url", "said"),
    [
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
    ],
)
async def test_what_cannot_be_opened_is_told_in_words_and_leaves_the_browser_usable(
    house: House, url: str, said: str
) -> None:
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match=said):
        await browser.navigate(url)
    assert (await house.show("<p>works</p>")).text == "works"


async def test_a_closed_port_is_told_in_words_and_so_is_a_server_that_hangs_up(house: House) -> None:
    house.site.pages["/rude"] = lambda request: request.connection.close()
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match=r"the server (sent nothing|broke off|closed)"):
        await browser.navigate(house.site.url("/rude"))
    with pytest.raises(BrowserFailure, match="nothing listens there"):
        await browser.navigate("127.0.0.1:2")


async def test_a_page_behind_a_password_says_so_and_is_opened_with_it(house: House) -> None:
    house.site.html("<p>secret</p>", "/inside")

    def ask(request: BaseHTTPRequestHandler) -> None:
        if request.headers["Authorization"]:
            house.site.pages["/locked"] = house.site.pages["/inside"]
            house.site.answer(request)
            return
        request.send_response(401)
        request.send_header("WWW-Authenticate", "Basic realm=x")
        request.send_header("Content-Length", "0")
        request.end_headers()

    house.site.pages["/locked"] = ask
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match="it wants a user name and a password"):
        await browser.navigate(house.site.url("/locked"))
    view = await browser.navigate(house.site.url("/locked", host="name:word@127.0.0.1"))
    assert view.text == "secret"
    assert "word" not in view.url


async def test_a_host_without_a_scheme_is_opened_whether_it_speaks_tls_or_not(house: House) -> None:
    house.site.html("<p>plain</p>")
    view = await (await house.browser()).navigate(f"localhost:{house.site.port}")
    assert view.text == "plain"


async def test_files_of_the_workspace_and_data_are_opened(house: House) -> None:
    (house.home / "page one.html").write_text("<title>File</title><p>from a file</p>")
    browser = await house.browser()
    for path in ("~/page one.html", "/home/ubuntu/page one.html", (house.home / "page one.html").as_uri()):
        view = await browser.navigate(path)
        assert (view.title, view.text, view.url) == ("File", "from a file", "~/page one.html")
    with pytest.raises(BrowserFailure, match=r"^~/missing.html cannot be opened"):
        await browser.navigate("~/missing.html")
    assert (await browser.navigate("data:text/html,<p>data</p>")).text == "data"


async def test_error_pages_of_a_server_are_shown_with_their_status(house: House) -> None:
    house.site.html("<p>Sorry</p>", "/broken", status=503)
    browser = await house.browser()
    view = await browser.navigate(house.site.url("/broken"))
    assert (view.text, view.notes) == ("Sorry", ("The server answered with HTTP status 503.",))
    assert (await browser.view()).notes == ()


async def test_an_answer_without_a_page_leaves_the_page_before(house: House) -> None:
    house.site.pages["/nothing"] = Page(b"", status=204)
    await house.show("<p>before</p>")
    view = await (await house.browser()).navigate(house.site.url("/nothing"))
    assert view.text == "before"
    assert view.notes == ("The server answered with nothing to show: the page is the one before.",)


async def test_keys_go_back_and_forward_and_load_again(house: House) -> None:
    first, second = house.site.html("<p>first</p>", "/1"), house.site.html("<p>second</p>", "/2")
    browser = await house.browser()
    await browser.navigate(first)
    await browser.navigate(second)
    assert (await browser.press_key("Alt+Left")).text == "first"
    assert (await browser.press_key("alt+ArrowRight")).text == "second"
    with pytest.raises(BrowserFailure, match="no page to go forward to"):
        await browser.press_key("Alt+ArrowRight")
    house.site.html("<p>changed</p>", "/2")
    assert (await browser.press_key("F5")).text == "changed"


async def test_another_place_of_the_same_page_keeps_the_numbers(house: House) -> None:
    view = await house.show("<a href='#below'>down</a><div style='height:3000px'></div><p id=below>below</p>")
    browser = await house.browser()
    number = index(view.text, "down")
    view = await browser.click(number)
    assert "below" in view.text
    view = await browser.navigate(house.site.url("/#below"))
    await browser.click(number)


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[int]:
    """A server whose certificate nobody trusts; answers its port."""
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


async def test_a_certificate_that_nobody_trusts_is_told_in_words(house: House, self_signed: int) -> None:
    browser = await house.browser()
    with pytest.raises(BrowserFailure, match="the certificate is from nobody that the browser trusts"):
        await browser.navigate(f"https://localhost:{self_signed}/")


async def test_tls_where_there_is_none_is_told_in_words(house: House) -> None:
    with pytest.raises(BrowserFailure, match=r"does not speak TLS there; http:// may work"):
        await (await house.browser()).navigate(f"https://127.0.0.1:{house.site.port}/")
