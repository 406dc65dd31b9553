"""Endpoint 9 with an unchanged noVNC: the desktop is visible, and typed text arrives."""

from urllib.parse import quote

import pytest
from playwright.async_api import Page

from tests.fakes.scripted_openai import Call, agent_script
from tests.integration.vnc.conftest import VncStack, kill
from tests.support.eventually import eventually

pytestmark = [pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

CONNECTED = "() => window.said.some(each => each.name === 'connect')"

COLOR_SCRIPT = """([red, green, blue]) => {
    const canvas = document.querySelector('#screen canvas');
    if (!canvas || !canvas.width) return false;
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let found = 0;
    for (let i = 0; i < pixels.length; i += 4)
        found += pixels[i] === red && pixels[i + 1] === green && pixels[i + 2] === blue;
    return found > pixels.length / 4 / 3;
}"""
"""Script that tells whether a third of the desktop has a color."""

CLOSED = """url => new Promise(resolve => {
    const socket = new WebSocket(url, 'binary');
    socket.onclose = event => resolve([event.code, event.reason]);
})"""

FIRST_BYTES_SCRIPT = """url => new Promise(resolve => {
    const socket = new WebSocket(url, 'binary');
    socket.onmessage = async event => resolve(await event.data.text());
})"""
"""Script that returns the first bytes of the desktop."""

PAINT = "color => { document.querySelector('textarea').style.background = color }"

LISTEN = """() => {
    window.seen = [];
    for (const name of ['mousedown', 'mousemove', 'wheel', 'keydown', 'paste'])
        addEventListener(name, event => seen.push(name));
}"""


def page_of(color: str, body: str = "") -> str:
    return "data:text/html," + quote(f"<body style='margin:0;background:{color}'>{body}")


async def click_into_page(viewer: Page, inside: Page) -> None:
    """Click into the page and wait until it receives keys.

    The address bar has the focus at first. The browser takes it from there some time after the click.
    """
    await inside.evaluate("window.keys = 0; addEventListener('keydown', () => { window.keys += 1 })")
    await viewer.mouse.click(640, 500)

    async def receives_keys() -> bool:
        await viewer.keyboard.press("Shift")
        return await inside.evaluate("window.keys > 0")

    await eventually(receives_keys)


async def wait_for_color(viewer: Page, red: int, green: int, blue: int) -> None:
    await viewer.wait_for_function(COLOR_SCRIPT, arg=[red, green, blue], timeout=30_000)


async def test_viewer_sees_agent_navigation(stack: VncStack) -> None:
    session_id = await stack.client.create_session()
    viewers = [await stack.viewer(session_id), await stack.viewer(session_id)]
    for viewer in viewers:
        await viewer.wait_for_function(CONNECTED, timeout=60_000)
        assert not await viewer.evaluate(COLOR_SCRIPT, [255, 0, 255])
    for color, seen in (("magenta", (255, 0, 255)), ("cyan", (0, 255, 255))):
        stack.model.reset(agent_script(steps=1, calls=[Call("browser_navigate", {"url": page_of(color)})]))
        events = await stack.client.send_and_read(session_id, "Show me")
        called = next(item for item in events if item.event == "tool" and item.data["status"] == "called")
        assert called.data["result"]["success"], called.data
        for viewer in viewers:
            await wait_for_color(viewer, *seen)
    assert len(await stack.containers(session_id)) == 1


async def test_typed_text_arrives_in_page(stack: VncStack) -> None:
    session_id = await stack.client.create_session()
    viewer = await stack.viewer(session_id)
    await viewer.wait_for_function(CONNECTED, timeout=60_000)
    box = "<textarea style='position:fixed;inset:0;font:40px monospace;background:yellow'></textarea>"
    async with stack.sandbox_page(session_id) as inside:
        await inside.goto(page_of("yellow", box))
        await wait_for_color(viewer, 255, 255, 0)
        await click_into_page(viewer, inside)
        await viewer.keyboard.type('Hello, "World" {1+1=2} ~x', delay=20)
        await viewer.keyboard.press("Backspace")
        await viewer.keyboard.press("Enter")
        await viewer.keyboard.type("second line", delay=20)
        wanted = 'Hello, "World" {1+1=2} ~\nsecond line'
        await inside.wait_for_function("wanted => document.querySelector('textarea').value === wanted", arg=wanted)
        await inside.evaluate("document.querySelector('textarea').value = ''")
        text = "".join(chr(0x4E00 + number * 37) for number in range(41)) + "😀"
        await viewer.evaluate("text => { for (const each of text) rfb.sendKey(0x1000000 + each.codePointAt(0)) }", text)
        await inside.wait_for_function("wanted => document.querySelector('textarea').value === wanted", arg=text)


async def test_view_only_viewer_sees_desktop_but_its_input_is_dropped(stack: VncStack) -> None:
    session_id = await stack.client.create_session()
    watcher = await stack.viewer(session_id, view_only=True)
    person = await stack.viewer(session_id)
    for viewer in (watcher, person):
        await viewer.wait_for_function(CONNECTED, timeout=60_000)
    box = "<textarea style='position:fixed;inset:0;font:40px monospace;background:yellow'></textarea>"
    async with stack.sandbox_page(session_id) as inside:
        await inside.goto(page_of("yellow", box))
        for viewer in (watcher, person):
            await wait_for_color(viewer, 255, 255, 0)
        await inside.evaluate("document.querySelector('textarea').focus()")
        await inside.evaluate(LISTEN)
        # noVNC does not know that it is view-only and sends everything.
        await watcher.mouse.click(640, 500)
        await watcher.mouse.wheel(0, 300)
        await watcher.keyboard.type("from the watcher", delay=5)
        await watcher.evaluate("() => { rfb.clipboardPasteFrom('secret'); rfb.sendCtrlAltDel(); rfb.machineReboot() }")
        await watcher.keyboard.press("Control+v")
        await inside.evaluate(PAINT, "cyan")
        await wait_for_color(watcher, 0, 255, 255)
        assert await inside.evaluate("seen") == []
        await click_into_page(person, inside)
        await person.keyboard.type("from the person", delay=20)
        await inside.wait_for_function("document.querySelector('textarea').value === 'from the person'")
        await inside.evaluate(PAINT, "lime")
        for viewer in (watcher, person):
            await wait_for_color(viewer, 0, 255, 0)
        assert await inside.evaluate("document.querySelector('textarea').value") == "from the person"
    assert not await watcher.evaluate("window.said.some(each => each.name === 'disconnect')")


async def test_ticket_opens_desktop_once(stack: VncStack) -> None:
    session_id = await stack.client.create_session()
    page = await stack.chromium.new_page()
    await page.goto(f"{stack.site}/?url=ws://127.0.0.1:1")
    address = f"{stack.address(session_id)}?ticket={await stack.ticket(session_id, view_only=False)}"
    assert await page.evaluate(FIRST_BYTES_SCRIPT, address) == "RFB 003.008\n"
    code, reason = await page.evaluate(CLOSED, address)
    assert (code, "used up" in reason) == (4401, True)


async def test_close_codes_tell_page_why_connection_ended(stack: VncStack) -> None:
    page = await stack.chromium.new_page()
    await page.goto(f"{stack.site}/?url=ws://127.0.0.1:1")
    assert await page.evaluate(CLOSED, stack.address("0" * 32)) == [4404, "no such session"]

    session_id = await stack.client.create_session()
    viewer = await stack.viewer(session_id)
    await viewer.wait_for_function(CONNECTED, timeout=60_000)
    closed = "(async () => { window.closed_with = await (%s)(%r) })()"
    await page.evaluate(f"() => {{ {closed % (CLOSED, stack.address(session_id))} }}")
    await kill(await stack.container(session_id))
    await page.wait_for_function("window.closed_with", timeout=15_000)
    assert await page.evaluate("window.closed_with") == [4410, "the sandbox is gone"]
    await viewer.wait_for_function("window.said.some(each => each.name === 'disconnect')", timeout=15_000)

    # The next viewer gets a new desktop with the same files.
    again = await stack.viewer(session_id)
    await again.wait_for_function(CONNECTED, timeout=60_000)
    await page.evaluate(f"() => {{ window.closed_with = null; {closed % (CLOSED, stack.address(session_id))} }}")
    assert (await stack.client.http.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    await page.wait_for_function("window.closed_with", timeout=15_000)
    assert await page.evaluate("window.closed_with") == [4410, "the session was deleted"]
    assert not await stack.containers(session_id)


async def test_page_of_foreign_origin_is_refused(stack: VncStack) -> None:
    session_id = await stack.client.create_session()
    page = await stack.chromium.new_page()
    elsewhere = stack.site.replace("127.0.0.1", "localhost")
    await page.goto(f"{elsewhere}/?url=ws://127.0.0.1:1")
    assert await page.evaluate(CLOSED, stack.address(session_id)) == [1006, ""]
    assert not await stack.containers(session_id)
