"""A real Xvnc with a window manager and a Chromium window, through the service's port."""

import asyncio
import contextlib
import os
import shutil
import signal
import struct
import time
from urllib.parse import unquote

import psutil
import pytest
import websockets
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import async_playwright

from sandbox.parts.browser import find_chromium
from sandbox.tests.real import Service, arguments, below
from sandbox.tests.real import name as name_of
from tests.support.eventually import wait_until

pytestmark = [
    pytest.mark.skipif(shutil.which("Xvnc") is None, reason="there is no Xvnc on this machine"),
    pytest.mark.skipif(shutil.which("jwm") is None, reason="there is no jwm on this machine"),
]
with_chromium = pytest.mark.skipif(find_chromium("") is None, reason="there is no Chromium on this machine")


@pytest.fixture
def start(tmp_path):
    services = []

    def make(**env) -> Service:
        mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
        defaults = {"ANKER_SANDBOX": mark, "SANDBOX_DESKTOP": "true", "SANDBOX_BROWSER": "off"}
        services.append(Service(tmp_path, **(defaults | env)))
        return services[-1]

    yield make
    for service in services:
        service.stop()


def named(service: Service, name: str) -> list[psutil.Process]:
    return [process for process in below(service.process.pid) if name_of(process) == name]


def ready(service: Service, part: str) -> None:
    wait_until(lambda: service.status()[part]["ready"])


def viewing(service: Service):
    return websockets.connect(
        f"ws://{service.address}/vnc",
        additional_headers=service.headers,
        subprotocols=["binary"],
        proxy=None,
        open_timeout=40,
    )


class Viewer:
    """A minimal RFB client: it requests whole raw frames and presses keys."""

    def __init__(self, socket) -> None:
        self._socket = socket
        self._read = bytearray()

    async def take(self, count: int) -> bytes:
        while len(self._read) < count:
            self._read += await self._socket.recv()
        taken = bytes(self._read[:count])
        del self._read[:count]
        return taken

    async def greet(self) -> str:
        version = await self.take(12)
        await self._socket.send(version)
        types = await self.take((await self.take(1))[0])
        assert types == b"\x01", "more than `None`, or something else, was offered"
        await self._socket.send(b"\x01")
        assert await self.take(4) == bytes(4)
        await self._socket.send(b"\x00")  # not shared, which the server ignores
        self.width, self.height = struct.unpack(">HH", await self.take(4))
        await self.take(16)
        name = await self.take(struct.unpack(">I", await self.take(4))[0])
        await self._socket.send(struct.pack(">BxHi", 2, 1, 0))
        return name.decode()

    async def frame(self) -> bytes:
        await self._socket.send(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        while (await self.take(1))[0] != 0:  # 2 is a bell; any other type is unexpected
            pass
        pixels = bytearray(self.width * self.height * 4)
        for _ in range(struct.unpack(">xH", await self.take(3))[0]):
            left, top, width, height, _ = struct.unpack(">HHHHi", await self.take(12))
            part = await self.take(width * height * 4)
            for row in range(height):
                at = ((top + row) * self.width + left) * 4
                pixels[at : at + width * 4] = part[row * width * 4 : (row + 1) * width * 4]
        return bytes(pixels)

    async def type(self, text: str) -> None:
        for letter in text:
            for down in (1, 0):
                await self._socket.send(struct.pack(">BBxxI", 4, down, ord(letter)))


def test_desktop_starts_and_listens_only_on_unix_sockets(start):
    service = start()
    ready(service, "desktop")
    (server,) = named(service, "Xvnc")
    assert [found for found in server.net_connections("inet") if found.status == psutil.CONN_LISTEN] == []
    wait_until(lambda: named(service, "jwm"))
    assert service.status()["browser"] == {"ready": False, "reason": "switched off"}


async def test_viewer_during_start_is_connected_when_ready(start):
    service = await asyncio.to_thread(start)
    async with viewing(service) as socket:
        viewer = Viewer(socket)
        await viewer.greet()
        assert socket.subprotocol == "binary" and (viewer.width, viewer.height) == (1280, 800)


async def test_many_viewers_see_same_screen(start):
    service = await asyncio.to_thread(start)
    sockets = [await viewing(service) for _ in range(4)]
    viewers = [Viewer(socket) for socket in sockets]
    for viewer in viewers:
        await viewer.greet()
    background = bytes((0x3C, 0x30, 0x22))

    async def painted() -> bool:
        frames = await asyncio.gather(*(viewer.frame() for viewer in viewers))
        # The whole screen except the pointer.
        return len(set(frames)) == 1 and frames[0].count(background) > 1280 * 800 * 0.98

    async with asyncio.timeout(30):
        while not await painted():
            await asyncio.sleep(0.05)  # the window manager draws on it
    for socket in sockets:
        await socket.close()


@pytest.mark.parametrize("name", ["Xvnc", "jwm"])
def test_killed_desktop_programs_restart(start, name):
    service = start()
    ready(service, "desktop")
    wait_until(lambda: named(service, name))
    (before,) = named(service, name)
    before.send_signal(signal.SIGKILL)
    wait_until(lambda: [process.pid for process in named(service, name)] not in ([], [before.pid]))
    ready(service, "desktop")
    wait_until(lambda: named(service, "jwm"))


async def test_viewer_gets_close_frame_when_desktop_dies(start):
    service = await asyncio.to_thread(start)
    async with viewing(service) as socket:
        await Viewer(socket).greet()
        named(service, "Xvnc")[0].send_signal(signal.SIGKILL)
        with pytest.raises(websockets.ConnectionClosedError):
            while True:
                await asyncio.wait_for(socket.recv(), 30)
        assert (socket.close_code, socket.close_reason) == (1011, "the desktop has ended the connection")
    async with viewing(service) as socket:
        await Viewer(socket).greet()


@pytest.mark.parametrize("has_ended", [False, True], ids=["running", "ended"])
async def test_desktop_whose_files_were_removed_is_remade(start, has_ended):
    service = await asyncio.to_thread(start)
    await asyncio.to_thread(ready, service, "desktop")
    (server,) = named(service, "Xvnc")
    for folder in {os.path.dirname(part) for part in arguments(server) if "anker-desktop-" in part}:
        shutil.rmtree(folder)
    if has_ended:
        server.kill()
    async with viewing(service) as socket:
        await Viewer(socket).greet()


async def test_viewer_gets_close_frame_when_sandbox_ends(start):
    service = await asyncio.to_thread(start)
    async with viewing(service) as socket:
        await Viewer(socket).greet()
        family = below(service.process.pid)
        folders = {part for process in family for part in arguments(process) if "anker-desktop-" in part}
        assert folders and len(family) >= 2
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                await asyncio.wait_for(socket.recv(), 30)
        assert (socket.close_code, socket.close_reason) == (1001, "the sandbox is ending")
    assert await asyncio.to_thread(service.process.wait, 60) == 0
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert not any(os.path.exists(os.path.dirname(folder)) for folder in folders)


@with_chromium
async def test_viewer_sees_agent_actions_and_its_keys_arrive(start):
    service = await asyncio.to_thread(start, SANDBOX_BROWSER="eager")
    await asyncio.to_thread(ready, service, "browser")
    async with async_playwright() as playwright, viewing(service) as socket:
        browser = await playwright.chromium.connect_over_cdp(f"http://{service.address}/cdp", headers=service.headers)
        (page,) = browser.contexts[0].pages
        await page.goto("data:text/html,<body style='background:rgb(12,200,34)'><input autofocus>")
        await page.bring_to_front()
        viewer = Viewer(socket)
        await viewer.greet()
        green = bytes((34, 200, 12))  # in the screen's byte order: blue first
        async with asyncio.timeout(30):
            while (await viewer.frame()).count(green) < 300_000:  # most of the screen, because the window is maximized
                await asyncio.sleep(0.05)
        await page.locator("input").focus()
        async with asyncio.timeout(30):
            while await page.locator("input").input_value() != "hello":
                await page.locator("input").fill("")
                await viewer.type("hello")
                await asyncio.sleep(0.2)


@with_chromium
async def test_browser_restarts_with_desktop(start):
    service = await asyncio.to_thread(start, SANDBOX_BROWSER="eager")
    await asyncio.to_thread(ready, service, "browser")
    before = {process.pid for process in below(service.process.pid)}
    named(service, "Xvnc")[0].send_signal(signal.SIGKILL)

    def replaced() -> bool:
        mains = [one for one in below(service.process.pid) if "--start-maximized" in arguments(one)]
        return bool(mains) and not {one.pid for one in mains} & before and service.status()["browser"]["ready"]

    await asyncio.to_thread(wait_until, replaced)


HAN = "".join(chr(0x4E00 + number * 37) for number in range(41))
MIXED = (
    "".join("".join(each) for each in zip(HAN, "привет, мир и всё остальное ещё раз; конец", strict=False))
    + "a1 \u0645\u0631\u062d\u0628\u0627 e\u0301 ñß€ \u05e9\u05dc ไทย हिन्दी 한국 😀👍🏽👩\u200d💻"
)


def keysym_of(character: str) -> int:
    return ord(character) if ord(character) < 256 else 0x01000000 | ord(character)


async def press(socket, *keysyms: int) -> None:
    """Press the keys together and release them in reverse."""
    for down, order in ((1, keysyms), (0, keysyms[::-1])):
        for keysym in order:
            await socket.send(struct.pack(">BBxxI", 4, down, keysym))


async def type_text(socket, text: str, pause: float) -> None:
    for character in text:
        await press(socket, keysym_of(character))
        await asyncio.sleep(pause)


async def click(socket, x: int, y: int) -> None:
    for mask in (1, 0):
        await socket.send(struct.pack(">BBHH", 5, mask, x, y))


async def address_bar_opens(socket, page, address: str) -> bool:
    """Type `address` and return whether the page opens it."""
    await page.evaluate("addEventListener('keydown', event => { globalThis.handled = event.ctrlKey && event.key })")
    for _ in range(5):
        await page.evaluate("globalThis.handled = ''")
        await press(socket, 0xFFE3, ord("l"))
        # Ctrl+L passes through the page. Until Chromium has handled it, further keys would reach the page, too.
        await page.wait_for_function("handled === 'l'")
        await page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        await type_text(socket, address, 0.005)
        await press(socket, 0xFF0D)
        with contextlib.suppress(PlaywrightError):
            await page.wait_for_url(lambda url: unquote(url) == address, timeout=5_000)
            return True
    return False


@with_chromium
async def test_text_of_any_script_arrives_in_page_and_address_bar(start):
    service = await asyncio.to_thread(lambda: start(SANDBOX_BROWSER="eager"))
    await asyncio.to_thread(ready, service, "browser")
    async with async_playwright() as playwright, viewing(service) as socket:
        await Viewer(socket).greet()
        browser = await playwright.chromium.connect_over_cdp(f"http://{service.address}/cdp", headers=service.headers)
        page = browser.contexts[0].pages[0]
        await page.set_content(
            "<textarea style='position:fixed;inset:0 0 50% 0'></textarea>"
            "<input type=password style='position:fixed;inset:50% 0 0 0'>"
        )
        for tag, height, text, pause in (
            ("textarea", 300, "😀" + HAN, 0.02),
            ("textarea", 300, MIXED, 0.005),
            ("textarea", 300, "".join(chr(0x4E00 + number * 7) for number in range(300)), 0),
            ("input", 700, MIXED, 0.005),
        ):
            await click(socket, 600, height)
            await page.wait_for_function("tag => document.activeElement.localName === tag", arg=tag)
            await page.evaluate("document.activeElement.value = ''")
            await type_text(socket, text, pause)
            length = len(text.encode("utf-16-le")) // 2
            await page.wait_for_function("length => document.activeElement.value.length >= length", arg=length)
            assert await page.evaluate("document.activeElement.value") == text
        assert await address_bar_opens(socket, page, "about:blank#" + MIXED.replace(" ", ""))
        await browser.close()


@with_chromium
async def test_two_viewers_type_at_the_same_time(start):
    service = await asyncio.to_thread(lambda: start(SANDBOX_BROWSER="eager"))
    await asyncio.to_thread(ready, service, "browser")
    async with async_playwright() as playwright, viewing(service) as first, viewing(service) as second:
        for socket in (first, second):
            await Viewer(socket).greet()
        browser = await playwright.chromium.connect_over_cdp(f"http://{service.address}/cdp", headers=service.headers)
        page = browser.contexts[0].pages[0]
        await page.set_content("<textarea autofocus style='position:fixed;inset:0'></textarea>")
        for mask in (1, 0):
            await first.send(struct.pack(">BBHH", 5, mask, 600, 400))
        await page.wait_for_function("document.activeElement.localName === 'textarea'")
        other = "".join(chr(0x5E00 + number * 37) for number in range(41))
        await asyncio.gather(type_text(first, HAN, 0.01), type_text(second, other, 0.01))
        await page.wait_for_function("document.activeElement.value.length >= 82")
        typed = await page.evaluate("document.activeElement.value")
        assert "".join(each for each in typed if each in HAN) == HAN
        assert "".join(each for each in typed if each in other) == other
        await browser.close()
