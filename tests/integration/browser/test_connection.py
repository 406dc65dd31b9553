"""Browsers that crash, hang and restart; connections that are opened, closed and cancelled; the driver."""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from app.domain.errors import BrowserFailure, SandboxUnavailable
from app.domain.models.sandbox import BrowserEndpoint
from app.infrastructure.browser import cdp, driver
from app.infrastructure.browser.browsers import PlaywrightBrowsers
from app.infrastructure.browser.driver import find_browser
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.integration.browser.browser_harness import (
    HANGING_SCRIPT,
    WAITING_SCRIPT,
    BrowserHarness,
    FolderSandbox,
    number_of,
)
from tests.integration.browser.chromium import Chromium

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def crash_tab(harness: BrowserHarness) -> None:
    """Crash the process of the page in front."""
    browser = await harness.browser()
    connection = browser._connection
    assert connection is not None
    tab = await connection.tabs.front()
    with pytest.raises(BrowserFailure):
        await tab.channel.send("Page.crash", seconds=5)


async def test_view_after_tab_crash_notes_it_and_shows_blank_tab(harness: BrowserHarness) -> None:
    await harness.open_page("<p>doomed</p>")
    await crash_tab(harness)
    view = await (await harness.browser()).view()
    assert view.url == "about:blank"
    assert f"The tab with {harness.site.url('/')} crashed and was closed." in view.notes
    assert (await harness.open_page("<p>works</p>")).text == "works"


async def test_tab_crash_during_action_fails_it(harness: BrowserHarness) -> None:
    await harness.open_page("<p>doomed</p>")
    browser = await harness.browser()
    task = asyncio.create_task(browser.execute(WAITING_SCRIPT))
    await harness.wait_for_request("/begun")
    connection = browser._connection
    assert connection is not None
    with pytest.raises(BrowserFailure):
        await (await connection.tabs.front()).channel.send("Page.crash", seconds=5)
    with pytest.raises(BrowserFailure, match="crashed"):
        await task
    assert (await harness.open_page("<p>works</p>")).text == "works"


async def test_click_that_hangs_page_stops_its_script(harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdp, "COMMAND_SECONDS", 1.0)
    view = await harness.open_page("<button onclick='document.title = \"hangs\"; for (;;);'>hang</button><p>text</p>")
    began = time.monotonic()
    view = await (await harness.browser()).click(number_of(view.text, "hang"))
    assert "A script of the page blocked it and was stopped: check what the action changed." in view.notes
    assert "text" in view.text
    assert time.monotonic() - began < 15


async def test_navigate_away_from_page_that_hangs_repeatedly(harness: BrowserHarness) -> None:
    await harness.open_page(
        "<p>text</p><script>setInterval(() => { const t = Date.now(); while (Date.now() - t < 400); })</script>"
    )
    browser = await harness.browser()
    began = time.monotonic()
    view = await browser.navigate(harness.site.html("<p>away</p>", "/away"))
    assert view.text == "away"
    assert time.monotonic() - began < 30


@pytest.fixture
def own_chromium(tmp_path: Path) -> Iterator[Chromium]:
    """A Chromium that the test may kill."""
    browser = Chromium(tmp_path)
    browser.start()
    yield browser
    browser.kill()


@pytest.fixture
def own_harness(harness: BrowserHarness, own_chromium: Chromium) -> BrowserHarness:
    """The same session with the Chromium that the test may kill."""
    harness.sandboxes.sandboxes[harness.session_id] = FolderSandbox(own_chromium, harness.home)
    return replace(harness, chromium=own_chromium)


async def test_view_after_browser_restart_notes_it(own_harness: BrowserHarness, own_chromium: Chromium) -> None:
    await own_harness.open_page("<p>before</p>")
    own_chromium.kill()
    own_chromium.start()
    view = await (await own_harness.browser()).view()
    assert view.notes == ("The browser was restarted: its tabs and what was typed into them are gone.",)
    assert (await own_harness.open_page("<p>after</p>")).text == "after"


async def test_action_waits_for_starting_browser(own_harness: BrowserHarness, own_chromium: Chromium) -> None:
    await own_harness.open_page("<p>before</p>")
    own_chromium.kill()
    threading.Timer(0.3, own_chromium.start).start()
    assert (await own_harness.open_page("<p>after</p>")).text == "after"


async def test_browser_death_during_action_fails_it(own_harness: BrowserHarness, own_chromium: Chromium) -> None:
    await own_harness.open_page("<p>before</p>")
    browser = await own_harness.browser()
    task = asyncio.create_task(browser.execute(WAITING_SCRIPT))
    await own_harness.wait_for_request("/begun")
    own_chromium.kill()
    with pytest.raises(SandboxUnavailable, match="The browser ended during this action"):
        await task
    own_chromium.start()
    assert (await own_harness.open_page("<p>after</p>")).text == "after"


async def test_restart_starts_new_processes_and_opens_url(own_harness: BrowserHarness, own_chromium: Chromium) -> None:
    await own_harness.open_page("<p>before</p>")
    before = own_chromium.pids
    url = own_harness.site.html("<p>fresh</p>", "/fresh")
    view = await (await own_harness.browser()).restart(url)
    assert view.text == "fresh"
    assert view.notes == ()
    assert not set(before) & set(own_chromium.pids)


async def test_connect_to_hanging_browser_closes_its_tabs(
    own_harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "CONNECT_SECONDS", 2.0)
    # The script starts long after the click, which would otherwise stop it.
    view = await own_harness.open_page(
        f"<button onclick='setTimeout(() => {{ {HANGING_SCRIPT} }}, 2000)'>hang</button>"
    )
    await (await own_harness.browser()).click(number_of(view.text, "hang"))
    await own_harness.browsers.release(own_harness.session_id)
    await own_harness.wait_for_request("/begun")
    view = await (await own_harness.browser()).view()
    assert view.url == "about:blank"
    assert view.notes == ("The browser's tabs no longer responded and were closed.",)
    assert (await own_harness.open_page("<p>works</p>")).text == "works"


async def test_restart_of_dead_browser_works(own_harness: BrowserHarness, own_chromium: Chromium) -> None:
    own_chromium.kill()
    view = await (await own_harness.browser()).restart(own_harness.site.html("<p>fresh</p>"))
    assert view.text == "fresh"


async def test_restart_with_invalid_url_keeps_browser(own_harness: BrowserHarness, own_chromium: Chromium) -> None:
    await own_harness.open_page("<p>before</p>")
    before = own_chromium.pids
    with pytest.raises(BrowserFailure, match="is not a URL"):
        await (await own_harness.browser()).restart("what is this")
    assert set(before) & set(own_chromium.pids)


async def test_new_sandbox_instance_is_connected_to(harness: BrowserHarness, own_chromium: Chromium) -> None:
    await harness.open_page("<p>before</p>")
    harness.sandboxes.sandboxes[harness.session_id] = FolderSandbox(own_chromium, harness.home)
    view = await (await harness.browser()).view()
    assert view.url == "about:blank"
    assert view.notes == ("The browser was restarted: its tabs and what was typed into them are gone.",)


async def test_release_keeps_page_open(harness: BrowserHarness) -> None:
    await harness.open_page("<p>stays</p>")
    await harness.browsers.release(harness.session_id)
    view = await (await harness.browser()).view()
    assert (view.text, view.notes) == ("stays", ())


async def test_connect_puts_visible_tab_in_front(harness: BrowserHarness) -> None:
    await harness.open_page("<p>first</p>")
    browser = await harness.browser()
    await browser.press_key("Control+t")
    await browser.navigate(harness.site.html("<p>second</p>", "/second"))
    await browser.press_key("Control+Tab")
    await harness.browsers.release(harness.session_id)
    assert (await (await harness.browser()).view()).text == "first"


async def test_sessions_in_shared_browser_are_separate(harness: BrowserHarness) -> None:
    views = {}
    for name in ("a", "b"):
        home = harness.home / name
        home.mkdir()
        harness.sandboxes.sandboxes[name] = FolderSandbox(harness.chromium, home, shared=True)
        browser = await harness.browsers.open(name)
        await browser.navigate(harness.site.html("<p>page</p><a download=f.txt href='data:,hi'>get</a>"))
        await browser.execute(f"document.cookie = 'who={name}'; document.title = '{name}'")
    for name in ("a", "b"):
        browser = await harness.browsers.open(name)
        views[name] = await browser.click(1)
        assert (await browser.execute("document.cookie")).value == f"who={name}"
        assert views[name].notes == ("Downloaded ~/Downloads/f.txt (2 bytes).",)
        assert (harness.home / name / "Downloads" / "f.txt").read_text() == "hi"
        await harness.browsers.release(name)
    assert [view.title for view in views.values()] == ["a", "b"]


async def test_cancelled_navigation_leaves_browser_usable(harness: BrowserHarness) -> None:
    harness.site.pages["/hangs"] = harness.site.endless()
    await harness.open_page("<p>before</p>")
    browser = await harness.browser()
    task = asyncio.create_task(browser.navigate(harness.site.url("/hangs")))
    await harness.wait_for_request("/hangs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    view = await browser.view()
    assert (view.text, view.notes) == ("before", ())


@pytest.mark.parametrize("after", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_cancelled_click_leaves_browser_usable(harness: BrowserHarness, after: float) -> None:
    view = await harness.open_page("<button onclick='n.textContent++'>b</button><p id=n>0</p>")
    browser = await harness.browser()
    task = asyncio.create_task(browser.click(number_of(view.text, "b")))
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait({task})  # on a fast machine it may have ended by then
    view = await browser.click(number_of(view.text, "b"))
    assert 'button "b"' in view.text


def connections(chromium: Chromium) -> int:
    """Return the number of connections of drivers to the browser."""
    count = 0
    for process in driver_processes():
        with contextlib.suppress(psutil.Error):
            count += sum(bool(each.raddr) and each.raddr.port == chromium.port for each in process.net_connections())
    return count


async def test_cancelled_connect_leaves_no_connection(harness: BrowserHarness) -> None:
    await (await harness.browser()).view()
    await harness.browsers.release(harness.session_id)
    for after in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
        task = asyncio.create_task((await harness.browser()).view())
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait({task})
        await harness.browsers.release(harness.session_id)
    async with asyncio.timeout(20):
        while connections(harness.chromium):
            await asyncio.sleep(0.05)
    assert (await harness.open_page("<p>works</p>")).text == "works"


async def test_concurrent_actions_of_session_run_in_order(harness: BrowserHarness) -> None:
    view = await harness.open_page("<button onclick='n.textContent++'>b</button><p id=n>0</p>")
    browser = await harness.browser()
    number = number_of(view.text, "b")
    views = await asyncio.gather(*(browser.click(number) for _ in range(5)))
    assert [each.text[-1] for each in views] == ["1", "2", "3", "4", "5"]


def driver_processes() -> list[psutil.Process]:
    def is_driver(process: psutil.Process) -> bool:
        try:
            return "playwright" in " ".join(process.cmdline())
        except psutil.Error:
            return False  # it has just exited

    return [each for each in psutil.Process().children(recursive=True) if is_driver(each)]


async def test_killed_driver_is_restarted(chromium: Chromium, harness: BrowserHarness) -> None:
    sandboxes = MemorySandboxProvider()
    sandboxes.sandboxes["s"] = FolderSandbox(chromium, harness.home)
    known = {each.pid for each in driver_processes()}
    browsers = PlaywrightBrowsers(sandboxes)
    try:
        url = harness.site.html("<p>page</p>")
        assert (await (await browsers.open("s")).navigate(url)).text == "page"
        (driver_process,) = [each for each in driver_processes() if each.pid not in known]
        os.kill(driver_process.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    view = await (await browsers.open("s")).navigate(url)
                    break
                except SandboxUnavailable:
                    continue
        assert view.text == "page"
    finally:
        await browsers.close()


async def test_driver_starts_on_first_use_and_stops_when_idle(chromium: Chromium, harness: BrowserHarness) -> None:
    sandboxes = MemorySandboxProvider()
    sandboxes.sandboxes["s"] = FolderSandbox(chromium, harness.home)
    before = {each.pid for each in driver_processes()}

    def new_drivers() -> set[int]:
        return {each.pid for each in driver_processes()} - before

    browsers = PlaywrightBrowsers(sandboxes, idle_seconds=0.2)
    try:
        browser = await browsers.open("s")
        assert not new_drivers()
        await browser.view()
        assert new_drivers()
        async with asyncio.timeout(30):
            while new_drivers():
                await asyncio.sleep(0.05)
        await (await browsers.open("s")).view()
        assert new_drivers()
    finally:
        await browsers.close()
    async with asyncio.timeout(30):
        while new_drivers():
            await asyncio.sleep(0.05)
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await browsers.open("s")


async def test_large_driver_is_restarted_and_pages_stay_open(
    chromium: Chromium, harness: BrowserHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandboxes = MemorySandboxProvider()
    sandboxes.sandboxes["s"] = FolderSandbox(chromium, harness.home)
    browsers = PlaywrightBrowsers(sandboxes)
    try:
        await (await browsers.open("s")).navigate(harness.site.html("<p>stays</p>"))
        before = {each.pid for each in driver_processes()}
        await browsers.sweep()
        assert {each.pid for each in driver_processes()} == before
        monkeypatch.setattr(driver, "RESTART_MB", 1)
        await browsers.sweep()
        view = await (await browsers.open("s")).view()
        assert {each.pid for each in driver_processes()} != before
        assert view.text == "stays"
        assert [each.split(":")[0] for each in view.notes] == ["The connection to the browser broke and was restored"]
    finally:
        await browsers.close()


async def test_many_sessions_leak_no_tasks_files_or_processes(chromium: Chromium, harness: BrowserHarness) -> None:
    async def run_session(number: int) -> None:
        name = f"many-{number}"
        harness.sandboxes.sandboxes[name] = FolderSandbox(chromium, harness.home, shared=True)
        browser = await harness.browsers.open(name)
        await browser.navigate(url)
        await harness.browsers.release(name)
        del harness.sandboxes.sandboxes[name]

    def resources() -> tuple[int, int, int]:
        process = psutil.Process()
        return len(asyncio.all_tasks()), process.num_fds(), len(process.children(recursive=True))

    url = harness.site.html("<p>x</p><button>b</button>")
    await run_session(0)
    await asyncio.sleep(0)
    before = resources()
    for number in range(1, 6):
        await run_session(number)
    async with asyncio.timeout(30):
        while any(now > then for now, then in zip(resources(), before, strict=True)):
            await asyncio.sleep(0.05)
    assert len(harness.chromium.tabs()) == 1


@pytest.fixture
def sandbox_port() -> Iterator[tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint]]:
    """The responses of a sandbox's port in order (the last one is repeated), and its endpoint."""
    responses: list[tuple[int, dict[str, object]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = responses.pop(0) if len(responses) > 1 else responses[0]
            if self.headers["Authorization"] != "Bearer secret":
                status, body = 401, {"success": False, "message": "no"}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield responses, BrowserEndpoint(url=f"http://127.0.0.1:{server.server_port}/cdp", token="secret", home="/")
    server.shutdown()
    server.server_close()


def error_response(status: int, message: str) -> tuple[int, dict[str, object]]:
    return status, {"success": False, "message": message, "data": None}


async def test_find_browser_waits_and_uses_only_reported_path(
    sandbox_port: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint],
) -> None:
    responses, endpoint = sandbox_port
    reported = {"webSocketDebuggerUrl": "ws://evil.example:1/cdp/devtools/browser/x"}
    responses += [error_response(503, "the browser is starting"), (200, reported)]
    assert await find_browser(endpoint) == endpoint.url.replace("http", "ws") + "/devtools/browser/x"


async def test_find_browser_without_browser_fails_with_sandbox_message(
    sandbox_port: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint],
) -> None:
    responses, endpoint = sandbox_port
    responses.append(error_response(409, "there is no browser in this sandbox: not installed"))
    with pytest.raises(BrowserFailure, match="no browser in this sandbox: not installed") as failure:
        await find_browser(endpoint)
    assert failure.value.status == 409


async def test_find_browser_that_does_not_start_times_out(
    sandbox_port: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint],
) -> None:
    responses, endpoint = sandbox_port
    responses.append(error_response(503, "the browser did not start within 20 s"))
    with pytest.raises(SandboxUnavailable, match="did not start within 20 s"):
        await find_browser(endpoint, seconds=0.3)


async def test_find_browser_distinguishes_refused_token_from_dead_sandbox(
    sandbox_port: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    responses, endpoint = sandbox_port
    responses.append((200, {}))
    with pytest.raises(SandboxUnavailable, match="refused our token"):
        await find_browser(replace(endpoint, token="wrong"))
    monkeypatch.setattr(driver, "REFUSED_SECONDS", 0.2)
    with pytest.raises(SandboxUnavailable, match="does not answer"):
        await find_browser(replace(endpoint, url="http://127.0.0.1:1/cdp"))
