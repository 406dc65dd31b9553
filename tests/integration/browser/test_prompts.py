"""What pages ask a person for: denied or answered at once, and noted."""

import time
from http.server import BaseHTTPRequestHandler

import pytest

from app.infrastructure.browser.tab import COMMIT_SECONDS
from tests.integration.browser.browser_harness import BrowserHarness, number_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

DENIED = {
    "location": "the location",
    "notifications": "permission to show notifications",
    "clipboard": "the content of the clipboard",
    "microphone": "a camera or a microphone",
    "screen": "a picture of the screen",
    "midi": "MIDI devices",
    "idle": "permission to detect idle users",
    "fonts": "the installed fonts",
    "screens": "the arrangement of the screens",
    "folder": "a folder",
    "usb": "a device",
    "hid": "a device",
    "serial": "a device",
    "color": "a color of the screen",
    "passkey": "a passkey or a security key",
    "account": "an account of the browser",
    "payment": "a payment with the browser",
    "handler": "permission to open links of its own scheme",
}
"""What each button asks for, as the note says it."""
OTHERS = {
    "copying": "",
    "storage": "",
    "printer": "The page asked to print: there is no printer.",
    "program": "That link opens another program, which does not exist here: mailto:someone@example.com",
}
"""Buttons that are answered otherwise, and the note."""


async def test_prompts_end_at_once_and_are_noted(harness: BrowserHarness) -> None:
    browser = await harness.browser()
    view = await harness.open_corpus_page("prompts.html", host="localhost")
    buttons = {name: number_of(view.text, f'"{name}"') for name in (*DENIED, *OTHERS)}
    for name, number in buttons.items():
        view = await browser.click(number)
        assert f"{name} failed" in view.text or f"{name} ended" in view.text, name
        note = OTHERS.get(name) or (f"The page asked for {DENIED[name]}" if name in DENIED else "")
        assert " ".join(view.notes).startswith(note) and bool(view.notes) == bool(note), (name, view.notes)


async def test_prompt_in_frames_is_noted(harness: BrowserHarness) -> None:
    ask = "<button onclick='navigator.geolocation.getCurrentPosition(() => 0)'>ask {0}</button>"
    harness.site.html(ask.format("other"), "/other")
    harness.site.html(ask.format("same"), "/same")
    view = await harness.open_page(
        f"<iframe src=/same></iframe><iframe src='{harness.site.url('/other', host='localhost')}'></iframe>"
    )
    browser = await harness.browser()
    for name in ("same", "other"):
        view = await browser.click(number_of(view.text, f"ask {name}"))
        assert view.notes == ("The page asked for the location: denied.",), name


async def test_prompt_during_load_is_noted(harness: BrowserHarness) -> None:
    view = await harness.open_page("<script>Notification.requestPermission()</script>text")
    assert view.notes == ("The page asked for permission to show notifications: denied.",)


async def test_replaced_functions_look_native(harness: BrowserHarness) -> None:
    await harness.open_page("text")
    value = "[print, navigator.credentials.get, Notification.requestPermission].map(String)"
    function = '"function () { [native code] }"'
    assert (await (await harness.browser()).execute(value)).value == f"[{function},{function},{function}]"


async def test_links_of_other_programs_are_noted_at_once(harness: BrowserHarness) -> None:
    view = await harness.open_page(
        "<a href='tel:123'>link</a><form action='mailto:a@b.c' method=post><button>form</button></form>"
        "<button onclick=\"window.open('zoommtg:1')\">window</button>"
    )
    browser = await harness.browser()
    began = time.monotonic()
    for name, url in (("link", "tel:123"), ("form", "mailto:a@b.c"), ("window", "zoommtg:1")):
        view = await browser.click(number_of(view.text, name))
        assert view.notes[0].startswith(f"That link opens another program, which does not exist here: {url}"), name
    assert time.monotonic() - began < COMMIT_SECONDS


async def test_login_dialogs_are_cancelled_and_noted(harness: BrowserHarness) -> None:
    def require_password(request: BaseHTTPRequestHandler) -> None:
        request.send_response(401)
        request.send_header("WWW-Authenticate", 'Basic realm="Staff"')
        request.end_headers()
        request.wfile.write(b"<p>locked</p>")

    harness.site.pages["/locked"] = require_password
    view = await harness.open_page(
        "<img src='/locked?image'><iframe src='/locked?frame'></iframe><a href='/locked?page'>go</a>"
        "<button onclick=\"fetch('/locked?data').then(answer => p.textContent = answer.status)\">fetch</button><p id=p>"
    )
    assert "locked?frame wants a user name and a password for 'Staff'" in " ".join(view.notes)
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, '"fetch"'))
    assert "401" in view.text
    view = await browser.click(number_of(view.text, "go"))
    assert view.text == "locked"
    assert view.notes[0] == (
        f"{harness.site.url('/locked?page')} wants a user name and a password for 'Staff': "
        "navigate to it as https://name:password@host/."
    )


async def test_open_file_picker_takes_a_path(harness: BrowserHarness) -> None:
    (harness.home / "a.txt").write_text("content")
    view = await harness.open_corpus_page("file_pickers.html", host="localhost")
    browser = await harness.browser()
    view = await browser.click(number_of(view.text, '"Open"'))
    assert view.notes == ("The page asks for a file: give its path with browser_input.",)
    assert "opened file a.txt: content" in (await browser.input(None, "~/a.txt", press_enter=False)).text


async def test_save_file_picker_becomes_a_download(harness: BrowserHarness) -> None:
    view = await harness.open_corpus_page("file_pickers.html", host="localhost")
    browser = await harness.browser()
    saved = await browser.click(number_of(view.text, '"Save"'))
    streamed = await browser.click(number_of(view.text, '"Stream"'))
    assert saved.notes == ("Downloaded ~/Downloads/saved.txt (7 bytes).",)
    assert streamed.notes == ("Downloaded ~/Downloads/2/streamed.txt (8 bytes).",)
    assert (harness.home / "Downloads" / "saved.txt").read_text() == "one two"


async def test_drop_zone_takes_a_path(harness: BrowserHarness) -> None:
    (harness.home / "a.txt").write_text("content")
    view = await harness.open_corpus_page("file_pickers.html", host="localhost")
    view = await (await harness.browser()).input(number_of(view.text, "file"), "~/a.txt", press_enter=False)
    assert "dropped a.txt: content" in view.text
