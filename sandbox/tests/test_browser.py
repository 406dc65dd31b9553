"""A real Chromium behind `/cdp`."""

import asyncio
import contextlib
import json
import os
import signal
import time

import httpx
import psutil
import pytest
import websockets
from playwright.async_api import async_playwright
from websockets.sync.client import connect

from sandbox.parts.browser import find_chromium
from sandbox.tests.real import Service, arguments, below, name
from tests.support.eventually import wait_until

pytestmark = pytest.mark.skipif(find_chromium("") is None, reason="there is no Chromium on this machine")

MIB = 1024 * 1024


@pytest.fixture
def start(tmp_path):
    services = []

    def make(program=("-m", "sandbox"), **env) -> Service:
        mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
        services.append(
            Service(tmp_path, program=program, **({"ANKER_SANDBOX": mark, "SANDBOX_EXEC_SECONDS": "5"} | env))
        )
        return services[-1]

    yield make
    for service in services:
        service.stop()


def browsers(service: Service) -> list[psutil.Process]:
    return [process for process in below(service.process.pid) if "chrom" in name(process)]


def cdp(service: Service, path: str, **options) -> httpx.Response:
    return service.client.get(f"http://{service.address}/cdp{path}", **options)


def driven(service: Service, playwright):
    return playwright.chromium.connect_over_cdp(f"http://{service.address}/cdp", headers=service.headers)


def test_lazy_browser_starts_on_first_request(start):
    service = start()
    service.run("true")
    assert service.status()["browser"] == {"ready": False, "reason": "starts when it is first used"}
    assert browsers(service) == []
    assert cdp(service, "/json/version").json()["Browser"].startswith("Chrome/")
    assert service.status()["browser"] == {"ready": True, "reason": ""}
    assert any("--headless=new" in arguments(process) for process in browsers(service))


def test_eager_browser_starts_without_request(start):
    service = start(SANDBOX_BROWSER="eager")
    wait_until(lambda: service.status()["browser"]["ready"])


def test_devtools_addresses_point_to_requested_port(start):
    service = start()
    version = cdp(service, "/json/version/").json()
    assert version["webSocketDebuggerUrl"].startswith(f"ws://{service.address}/cdp/devtools/browser/")
    version = cdp(service, "/json/version", headers={"Host": "sandbox.example:81"}).json()
    assert version["webSocketDebuggerUrl"].startswith("ws://sandbox.example:81/cdp/devtools/browser/")
    for path in ("/json/list", "/json"):
        (page,) = [target for target in cdp(service, path).json() if target["type"] == "page"]
        assert page["webSocketDebuggerUrl"] == f"ws://{service.address}/cdp/devtools/page/{page['id']}"


def test_pages_open_and_close_and_chromium_errors_are_forwarded(start):
    service = start()
    made = service.client.put(f"http://{service.address}/cdp/json/new?data:text/html,%3Ctitle%3Ehi%3C/title%3E")
    assert made.status_code == 200 and made.json()["url"] == "data:text/html,<title>hi</title>"
    assert cdp(service, f"/json/close/{made.json()['id']}").text == "Target is closing"
    assert cdp(service, "/json/close/none").status_code == 404


def test_every_cdp_route_requires_token(start):
    service = start()
    bare = httpx.Client(base_url=f"http://{service.address}")
    assert bare.get("/cdp/json/version").status_code == 401
    assert bare.put("/cdp/json/new?about:blank").status_code == 401
    assert browsers(service) == [], "a stranger started it"

    async def knock(path):
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{service.address}{path}", proxy=None)
        return caught.value.response.status_code

    for path in ("/cdp/devtools/browser/x", "/vnc", "/nowhere"):
        assert asyncio.run(knock(path)) == 401


async def test_unknown_devtools_websocket_is_refused_with_reason(start):
    service = await asyncio.to_thread(start)
    for path, status, word in (
        ("/nowhere", 404, b"no such route"),
        ("/cdp", 404, b"no such route"),
        ("/vnc", 409, b"there is no desktop in this sandbox"),
        ("/cdp/devtools/page/none", 404, b"No such target id: none"),
        ("/cdp/devtools/browser/none", 404, b"no such browser: none"),
    ):
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(f"ws://{service.address}{path}", additional_headers=service.headers, proxy=None)
        response = caught.value.response
        assert response.status_code == status and word in (response.body or b""), path


async def test_playwright_drives_browser_and_renders_page(start):
    service = await asyncio.to_thread(start)
    async with async_playwright() as playwright:
        browser = await driven(service, playwright)
        page = await browser.contexts[0].new_page()
        await page.set_content("<title>t</title><button onclick=\"document.title='clicked'\">Press</button>")
        await page.get_by_role("button", name="Press").click()
        assert await page.title() == "clicked"
        assert (await page.screenshot()).startswith(b"\x89PNG")
        assert await page.evaluate("!!document.createElement('canvas').getContext('webgl')")
        await browser.close()


async def test_two_drivers_drive_same_and_own_pages(start):
    service = await asyncio.to_thread(start)
    async with async_playwright() as playwright:
        first, second = await driven(service, playwright), await driven(service, playwright)
        page = await first.contexts[0].new_page()
        await page.set_content("<title>shared</title><input><iframe srcdoc='<p>inner</p>'></iframe>")
        (same,) = [each for each in second.contexts[0].pages if await each.title() == "shared"]
        await same.locator("input").fill("from the second")
        assert await page.locator("input").input_value() == "from the second"
        assert await same.frame_locator("iframe").locator("p").inner_text() == "inner"
        own = await second.contexts[0].new_page()
        titles = [each.evaluate(f"document.title = '{number}'") for number in range(50) for each in (page, own)]
        assert await asyncio.gather(*titles) == [str(number) for number in range(50) for _ in range(2)]
        session = await second.new_browser_cdp_session()
        assert (await session.send("Browser.getVersion"))["product"].startswith("Chrome/")
        await first.close()
        await own.set_content("<title>still driven</title>")
        assert await same.title() == "49" and await own.title() == "still driven"


async def test_chromium_listens_on_no_port(start):
    service = await asyncio.to_thread(start)
    await asyncio.to_thread(cdp, service, "/json/version")
    pids = {process.pid for process in browsers(service)}
    ports = [each for each in psutil.net_connections("inet") if each.pid in pids and each.status == "LISTEN"]
    assert pids and ports == []
    for process in browsers(service):
        assert not any("remote-debugging-port" in argument for argument in arguments(process))


async def test_driver_that_does_not_read_is_disconnected_and_others_go_on(start):
    service = await asyncio.to_thread(start)
    (page,) = [one for one in (await asyncio.to_thread(cdp, service, "/json/list")).json() if one["type"] == "page"]
    options = {"additional_headers": service.headers, "proxy": None, "max_size": None, "compression": None}
    before = psutil.Process(service.process.pid).memory_info().rss
    call = {"method": "Runtime.evaluate", "params": {"expression": f"'z'.repeat({8 * MIB})", "returnByValue": True}}
    async with websockets.connect(page["webSocketDebuggerUrl"], max_queue=1, **options) as deaf:
        deaf.transport.pause_reading()
        async with websockets.connect(page["webSocketDebuggerUrl"], **options) as other:
            for number in range(40):
                with contextlib.suppress(websockets.ConnectionClosed):
                    await deaf.send(json.dumps({"id": number, **call}))
                await other.send(
                    json.dumps({"id": number, "method": "Runtime.evaluate", "params": {"expression": "1"}})
                )
                while json.loads(await asyncio.wait_for(other.recv(), 30)).get("id") != number:
                    pass
            assert psutil.Process(service.process.pid).memory_info().rss - before < 160 * MIB
        deaf.transport.abort()


async def test_large_messages_pass_in_both_directions(start):
    service = await asyncio.to_thread(start)
    (page,) = [one for one in (await asyncio.to_thread(cdp, service, "/json/list")).json() if one["type"] == "page"]
    options = {"additional_headers": service.headers, "proxy": None, "max_size": None, "compression": "deflate"}
    async with websockets.connect(page["webSocketDebuggerUrl"], **options) as socket:
        assert socket.protocol.extensions == [], "it was compressed"
        expression = f"'{'y' * (48 * MIB)}'.length"
        await socket.send(json.dumps({"id": 1, "method": "Runtime.evaluate", "params": {"expression": expression}}))
        assert json.loads(await socket.recv())["result"]["result"]["value"] == 48 * MIB
        params = {"expression": f"'z'.repeat({100 * MIB})", "returnByValue": True}
        await socket.send(json.dumps({"id": 2, "method": "Runtime.evaluate", "params": params}))
        assert len(await socket.recv()) > 100 * MIB


async def test_killed_browser_restarts_and_drivers_are_disconnected(start):
    service = await asyncio.to_thread(start)
    version = (await asyncio.to_thread(cdp, service, "/json/version")).json()
    options = {"additional_headers": service.headers, "proxy": None}
    async with websockets.connect(version["webSocketDebuggerUrl"], **options) as driver:
        main = min(browsers(service), key=lambda process: process.create_time())
        main.send_signal(signal.SIGKILL)
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(driver.recv(), 30)
    again = (await asyncio.to_thread(cdp, service, "/json/version")).json()
    assert again["webSocketDebuggerUrl"] != version["webSocketDebuggerUrl"]


def test_restart_replaces_every_process_and_returns_when_ready(start):
    service = start()
    first = cdp(service, "/json/version").json()["webSocketDebuggerUrl"]
    before = browsers(service)
    answer = service.client.post("/browser/restart").json()
    assert answer["success"], answer
    assert service.status()["browser"]["ready"]
    assert cdp(service, "/json/version").json()["webSocketDebuggerUrl"] != first
    wait_until(lambda: not any(process.is_running() for process in before))


def test_restart_of_unused_browser_starts_it(start):
    service = start()
    assert service.client.post("/browser/restart").json()["success"]
    assert len(browsers(service)) > 1


async def test_cookies_survive_restart_and_stale_locks_are_removed(start, tmp_path):
    service = await asyncio.to_thread(start)

    async def visit(code: str):
        async with async_playwright() as playwright:
            browser = await driven(service, playwright)
            page = await browser.contexts[0].new_page()
            await page.route("**", lambda route: route.fulfill(body="<title>x</title>", content_type="text/html"))
            await page.goto("http://site.example/")
            return await page.evaluate(code)

    await visit("document.cookie = 'login=yes; max-age=999999'")
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, 60) == 0
    profile = tmp_path / "home" / ".config" / "anker-chromium"
    (profile / "SingletonLock").unlink(missing_ok=True)
    (profile / "SingletonLock").symlink_to("another-host-4711")
    service = await asyncio.to_thread(start)
    assert await visit("document.cookie") == "login=yes"
    caches = [found for found in profile.rglob("Cache_Data")]
    assert caches == [], "the cache is in the workspace"


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL", "lifeline"])
def test_browser_ends_with_sandbox(start, end):
    began = time.monotonic()
    service = start()
    cdp(service, "/json/version")
    limit = max(2, time.monotonic() - began)  # as long as the start may take on a busy machine
    family = below(service.process.pid)
    assert len([process for process in family if "chrom" in name(process)]) > 2
    caches = {argument for process in family for argument in arguments(process) if "disk-cache-dir" in argument}
    began = time.monotonic()
    if end == "lifeline":
        os.close(service.lifeline)
        service.lifeline = -1
    else:
        service.process.send_signal(getattr(signal, end))
    service.process.wait(60)
    assert time.monotonic() - began < limit
    assert psutil.wait_procs(family, timeout=30)[1] == []
    if end != "SIGKILL":
        assert not any(os.path.exists(cache.partition("=")[2]) for cache in caches)


def test_browser_and_commands_do_not_get_token(start):
    service = start(SANDBOX_TOKEN="t")
    cdp(service, "/json/version")
    service.run("sleep 60 &")
    family = below(service.process.pid)
    assert len(family) > 4
    for process in family:
        environment = process.environ()
        assert not [name for name in environment if name.startswith("SANDBOX_")], process.name()


IMPATIENT = (
    "import runpy; from sandbox.parts import browser; browser.START_SECONDS = 2.0; "
    "runpy.run_module('sandbox', run_name='__main__')"
)
"""The program, with a shorter limit for the start of Chromium."""


def test_browser_that_cannot_start_returns_503(start, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    broken.chmod(0o755)
    service = start(program=("-c", IMPATIENT), SANDBOX_CHROMIUM=str(broken))
    answer = cdp(service, "/json/version", timeout=40)
    assert answer.status_code == 503 and "did not start within 2 s" in answer.json()["message"]
    assert service.status()["browser"] == {"ready": False, "reason": "starting"}
    assert service.run("echo works")["output"] == "works\n"


def test_connected_driver_counts_as_use_only_when_it_sends(start):
    service = start()
    address = cdp(service, "/json/version").json()["webSocketDebuggerUrl"]
    with connect(address, additional_headers=service.headers) as driver:
        wait_until(lambda: service.status()["idle_seconds"] > 0.3)
        before = time.monotonic()
        driver.send(json.dumps({"id": 1, "method": "Browser.getVersion"}))
        assert json.loads(driver.recv(10))["id"] == 1
        assert service.status()["idle_seconds"] <= time.monotonic() - before
        wait_until(lambda: service.status()["idle_seconds"] > 0.3)
