"""Browsers that crash, end and start anew; connections that come and go."""

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
from app.infrastructure.browser import channel, driver
from app.infrastructure.browser import endpoint as endpoints
from app.infrastructure.browser.browsers import PlaywrightBrowsers
from app.infrastructure.browser.endpoint import find_browser
from tests.fakes.memory_sandbox import MemorySandboxProvider
from tests.integration.browser.chromium import Chromium
from tests.integration.browser.house import HANGS, DiskSandbox, House, index

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAITS = "await fetch('/begun'); await new Promise(() => {})"
"""A script that tells the site when it is under way, and does not end."""


async def crash_tab(house: House) -> None:
    """As the page in front crashes when its process dies."""
    browser = await house.browser()
    connection = browser._connection
    assert connection is not None
    tab = await connection.tabs.front()
    with pytest.raises(BrowserFailure):
        await tab.channel.send("Page.crash", seconds=5)


async def test_a_crashed_tab_is_told_of_and_another_is_in_front(house: House) -> None:
    await house.show("<p>doomed</p>")
    await crash_tab(house)
    view = await (await house.browser()).view()
    assert view.url == "about:blank"
    assert f"The tab with {house.site.url('/')} crashed and was closed." in view.notes
    assert (await house.show("<p>works</p>")).text == "works"


async def test_a_tab_that_crashes_under_an_action_fails_it_with_a_word(house: House) -> None:
    await house.show("<p>doomed</p>")
    browser = await house.browser()
    task = asyncio.create_task(browser.execute(WAITS))
    await house.asked("/begun")
    connection = browser._connection
    assert connection is not None
    with pytest.raises(BrowserFailure):
        await (await connection.tabs.front()).channel.send("Page.crash", seconds=5)
    with pytest.raises(BrowserFailure, match="crashed"):
        await task
    assert (await house.show("<p>works</p>")).text == "works"


async def test_a_page_that_hangs_is_freed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "CALL_SECONDS", 1.0)
    view = await house.show("<button onclick='document.title = \"hangs\"; for (;;);'>hang</button><p>text</p>")
    began = time.monotonic()
    view = await (await house.browser()).click(index(view.text, "hang"))
    assert "A script of the page ran on and on, and was stopped." in view.notes
    assert "text" in view.text
    assert time.monotonic() - began < 15


async def test_a_page_that_hangs_again_and_again_can_be_left(house: House) -> None:
    await house.show(
        "<p>text</p><script>setInterval(() => { const t = Date.now(); while (Date.now() - t < 400); })</script>"
    )
    browser = await house.browser()
    began = time.monotonic()
    view = await browser.navigate(house.site.html("<p>away</p>", "/away"))
    assert view.text == "away"
    assert time.monotonic() - began < 30


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Chromium]:
    """A Chromium that the test may kill."""
    browser = Chromium(tmp_path)
    browser.start()
    yield browser
    browser.kill()


@pytest.fixture
def other(house: House, own: Chromium) -> House:
    """The same session with a browser of its own."""
    house.sandboxes.sandboxes[house.session_id] = DiskSandbox(own, house.home)
    return replace(house, chromium=own)


async def test_a_browser_that_died_is_told_of_when_the_next_one_is_there(other: House, own: Chromium) -> None:
    await other.show("<p>before</p>")
    own.kill()
    own.start()
    view = await (await other.browser()).view()
    assert view.notes == ("The browser was started anew: its tabs and what was typed into them are gone.",)
    assert (await other.show("<p>after</p>")).text == "after"


async def test_a_browser_that_is_just_starting_is_waited_for(other: House, own: Chromium) -> None:
    await other.show("<p>before</p>")
    own.kill()
    threading.Timer(0.3, own.start).start()
    assert (await other.show("<p>after</p>")).text == "after"


async def test_a_browser_that_dies_under_an_action_says_so(other: House, own: Chromium) -> None:
    await other.show("<p>before</p>")
    browser = await other.browser()
    task = asyncio.create_task(browser.execute(WAITS))
    await other.asked("/begun")
    own.kill()
    with pytest.raises(SandboxUnavailable, match="The browser ended in the middle of it"):
        await task
    own.start()
    assert (await other.show("<p>after</p>")).text == "after"


async def test_restarting_gives_a_fresh_browser_with_the_page_open(other: House, own: Chromium) -> None:
    await other.show("<p>before</p>")
    before = own.pids
    url = other.site.html("<p>fresh</p>", "/fresh")
    view = await (await other.browser()).restart(url)
    assert view.text == "fresh"
    assert view.notes == ()
    assert not set(before) & set(own.pids)


async def test_a_browser_that_hangs_before_it_is_connected_to_is_cleared(
    other: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "CONNECT_SECONDS", 2.0)
    # Long after the click, which would notice.
    view = await other.show(f"<button onclick='setTimeout(() => {{ {HANGS} }}, 2000)'>hang</button>")
    await (await other.browser()).click(index(view.text, "hang"))
    await other.browsers.release(other.session_id)
    await other.asked("/begun")
    view = await (await other.browser()).view()
    assert view.url == "about:blank"
    assert view.notes == ("The browser's tabs did not respond any more, and were closed.",)
    assert (await other.show("<p>works</p>")).text == "works"


async def test_a_browser_that_cannot_be_connected_to_can_be_restarted(other: House, own: Chromium) -> None:
    own.kill()
    view = await (await other.browser()).restart(other.site.html("<p>fresh</p>"))
    assert view.text == "fresh"


async def test_restarting_with_what_is_no_url_leaves_the_browser_alone(other: House, own: Chromium) -> None:
    await other.show("<p>before</p>")
    before = own.pids
    with pytest.raises(BrowserFailure, match="is not a URL"):
        await (await other.browser()).restart("what is this")
    assert set(before) & set(own.pids)


async def test_another_life_of_the_sandbox_is_connected_to_anew(house: House, own: Chromium) -> None:
    await house.show("<p>before</p>")
    house.sandboxes.sandboxes[house.session_id] = DiskSandbox(own, house.home)
    view = await (await house.browser()).view()
    assert view.url == "about:blank"
    assert view.notes == ("The browser was started anew: its tabs and what was typed into them are gone.",)


async def test_letting_go_leaves_the_page_open_for_the_next_connection(house: House) -> None:
    await house.show("<p>stays</p>")
    await house.browsers.release(house.session_id)
    view = await (await house.browser()).view()
    assert (view.text, view.notes) == ("stays", ())


async def test_of_several_tabs_the_one_that_is_seen_is_in_front_after_connecting(house: House) -> None:
    await house.show("<p>first</p>")
    browser = await house.browser()
    await browser.press_key("Control+t")
    await browser.navigate(house.site.html("<p>second</p>", "/second"))
    await browser.press_key("Control+Tab")
    await house.browsers.release(house.session_id)
    assert (await (await house.browser()).view()).text == "first"


async def test_sessions_that_share_a_browser_do_not_see_each_other(house: House) -> None:
    views = {}
    for name in ("a", "b"):
        home = house.home / name
        home.mkdir()
        house.sandboxes.sandboxes[name] = DiskSandbox(house.chromium, home, shared=True)
        browser = await house.browsers.open(name)
        await browser.navigate(house.site.html("<p>page</p><a download=f.txt href='data:,hi'>get</a>"))
        await browser.execute(f"document.cookie = 'who={name}'; document.title = '{name}'")
    for name in ("a", "b"):
        browser = await house.browsers.open(name)
        views[name] = await browser.click(1)
        assert (await browser.execute("document.cookie")).value == f"who={name}"
        assert views[name].notes == ("Downloaded ~/Downloads/f.txt (2 bytes).",)
        assert (house.home / name / "Downloads" / "f.txt").read_text() == "hi"
        await house.browsers.release(name)
    assert [view.title for view in views.values()] == ["a", "b"]


async def test_stopping_in_the_middle_of_a_navigation_leaves_the_browser_usable(house: House) -> None:
    house.site.pages["/hangs"] = house.site.never()
    await house.show("<p>before</p>")
    browser = await house.browser()
    task = asyncio.create_task(browser.navigate(house.site.url("/hangs")))
    await house.asked("/hangs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    view = await browser.view()
    assert (view.text, view.notes) == ("before", ())


@pytest.mark.parametrize("after", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_stopping_at_any_moment_of_an_action_leaves_the_browser_usable(house: House, after: float) -> None:
    view = await house.show("<button onclick='n.textContent++'>b</button><p id=n>0</p>")
    browser = await house.browser()
    task = asyncio.create_task(browser.click(index(view.text, "b")))
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait({task})  # a fast machine may be done by then
    view = await browser.click(index(view.text, "b"))
    assert 'button "b"' in view.text


def connections(chromium: Chromium) -> int:
    """How many connections drivers hold to the browser."""
    count = 0
    for process in driver_processes():
        with contextlib.suppress(psutil.Error):
            count += sum(bool(each.raddr) and each.raddr.port == chromium.port for each in process.net_connections())
    return count


async def test_stopping_at_any_moment_of_connecting_leaves_no_connection(house: House) -> None:
    await (await house.browser()).view()
    await house.browsers.release(house.session_id)
    for after in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12):
        task = asyncio.create_task((await house.browser()).view())
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait({task})
        await house.browsers.release(house.session_id)
    async with asyncio.timeout(20):
        while connections(house.chromium):
            await asyncio.sleep(0.05)
    assert (await house.show("<p>works</p>")).text == "works"


async def test_actions_of_one_session_go_one_after_the_other(house: House) -> None:
    view = await house.show("<button onclick='n.textContent++'>b</button><p id=n>0</p>")
    browser = await house.browser()
    number = index(view.text, "b")
    views = await asyncio.gather(*(browser.click(number) for _ in range(5)))
    assert [each.text[-1] for each in views] == ["1", "2", "3", "4", "5"]


def driver_processes() -> list[psutil.Process]:
    def is_driver(process: psutil.Process) -> bool:
        try:
            return "playwright" in " ".join(process.cmdline())
        except psutil.Error:
            return False  # it has just ended

    return [each for each in psutil.Process().children(recursive=True) if is_driver(each)]


async def test_a_driver_that_died_is_started_again(chromium: Chromium, house: House) -> None:
    sandboxes = MemorySandboxProvider()
    sandboxes.sandboxes["s"] = DiskSandbox(chromium, house.home)
    known = {each.pid for each in driver_processes()}
    browsers = PlaywrightBrowsers(sandboxes)
    try:
        url = house.site.html("<p>page</p>")
        assert (await (await browsers.open("s")).navigate(url)).text == "page"
        (mine,) = [each for each in driver_processes() if each.pid not in known]
        os.kill(mine.pid, signal.SIGKILL)
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


async def test_the_driver_starts_with_the_first_use_and_ends_with_the_last(chromium: Chromium, house: House) -> None:
    sandboxes = MemorySandboxProvider()
    sandboxes.sandboxes["s"] = DiskSandbox(chromium, house.home)
    before = {each.pid for each in driver_processes()}

    def mine() -> set[int]:
        return {each.pid for each in driver_processes()} - before

    browsers = PlaywrightBrowsers(sandboxes, idle_seconds=0)
    try:
        browser = await browsers.open("s")
        assert not mine()
        await browser.view()
        assert mine()
        async with asyncio.timeout(30):
            while mine():
                await browsers.sweep()
        await (await browsers.open("s")).view()
        assert mine()
    finally:
        await browsers.close()
    async with asyncio.timeout(30):
        while mine():
            await asyncio.sleep(0.02)
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await browsers.open("s")


async def test_a_driver_that_has_grown_heavy_is_started_anew_and_pages_stay(
    chromium: Chromium, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandboxes = MemorySandboxProvider()
    sandboxes.sandboxes["s"] = DiskSandbox(chromium, house.home)
    browsers = PlaywrightBrowsers(sandboxes)
    try:
        await (await browsers.open("s")).navigate(house.site.html("<p>stays</p>"))
        before = {each.pid for each in driver_processes()}
        await browsers.sweep()
        assert {each.pid for each in driver_processes()} == before
        monkeypatch.setattr(driver, "HEAVY_MB", 1)
        await browsers.sweep()
        view = await (await browsers.open("s")).view()
        assert {each.pid for each in driver_processes()} != before
        assert view.text == "stays"
        assert [each.split(":")[0] for each in view.notes] == ["The connection to the browser broke and was made anew"]
    finally:
        await browsers.close()


async def test_nothing_is_left_behind_by_many_sessions(chromium: Chromium, house: House) -> None:
    async def once(number: int) -> None:
        name = f"many-{number}"
        house.sandboxes.sandboxes[name] = DiskSandbox(chromium, house.home, shared=True)
        browser = await house.browsers.open(name)
        await browser.navigate(url)
        await house.browsers.release(name)
        del house.sandboxes.sandboxes[name]

    def left() -> tuple[int, int, int]:
        process = psutil.Process()
        return len(asyncio.all_tasks()), process.num_fds(), len(process.children(recursive=True))

    url = house.site.html("<p>x</p><button>b</button>")
    await once(0)
    await asyncio.sleep(0)
    before = left()
    for number in range(1, 6):
        await once(number)
    async with asyncio.timeout(30):
        while any(now > then for now, then in zip(left(), before, strict=True)):
            await asyncio.sleep(0.05)
    assert len(house.chromium.tabs()) == 1


@pytest.fixture
def gate() -> Iterator[tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint]]:
    """A sandbox's port that answers as the test says, the last answer for ever; and its endpoint."""
    answers: list[tuple[int, dict[str, object]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
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
    yield answers, BrowserEndpoint(url=f"http://127.0.0.1:{server.server_port}/cdp", token="secret", home="/")
    server.shutdown()
    server.server_close()


def refusal(status: int, message: str) -> tuple[int, dict[str, object]]:
    return status, {"success": False, "message": message, "data": None}


async def test_a_browser_that_starts_is_waited_for_and_only_its_path_is_believed(
    gate: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint],
) -> None:
    answers, endpoint = gate
    told = {"webSocketDebuggerUrl": "ws://evil.example:1/cdp/devtools/browser/x"}
    answers += [refusal(503, "the browser is starting"), (200, told)]
    assert await find_browser(endpoint) == endpoint.url.replace("http", "ws") + "/devtools/browser/x"


async def test_the_words_of_a_sandbox_that_has_no_browser_are_passed_on(
    gate: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint],
) -> None:
    answers, endpoint = gate
    answers.append(refusal(409, "there is no browser in this sandbox: not installed"))
    with pytest.raises(BrowserFailure, match="no browser in this sandbox: not installed") as failure:
        await find_browser(endpoint)
    assert failure.value.status == 409


async def test_a_browser_that_does_not_start_is_given_up_with_the_sandboxs_words(
    gate: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint],
) -> None:
    answers, endpoint = gate
    answers.append(refusal(503, "the browser did not start within 20 s"))
    with pytest.raises(SandboxUnavailable, match="did not start within 20 s"):
        await find_browser(endpoint, seconds=0.3)


async def test_a_refused_token_and_a_sandbox_that_is_gone_are_told_apart(
    gate: tuple[list[tuple[int, dict[str, object]]], BrowserEndpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, endpoint = gate
    answers.append((200, {}))
    with pytest.raises(SandboxUnavailable, match="refused our token"):
        await find_browser(replace(endpoint, token="wrong"))
    monkeypatch.setattr(endpoints, "REFUSED_SECONDS", 0.2)
    with pytest.raises(SandboxUnavailable, match="does not answer"):
        await find_browser(replace(endpoint, url="http://127.0.0.1:1/cdp"))
