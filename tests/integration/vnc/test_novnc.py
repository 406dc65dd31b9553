"""Endpoint 9 with noVNC, unchanged: what happens on the desktop is seen, what a person types arrives."""

from urllib.parse import quote

import pytest
from playwright.async_api import Page

from tests.fakes.scripted_openai import Call, agent_script
from tests.integration.vnc.conftest import Stage, kill

pytestmark = pytest.mark.timeout(180)

CONNECTED = "() => window.said.some(each => each.name === 'connect')"

SHOWS = """([red, green, blue]) => {
    const canvas = document.querySelector('#screen canvas');
    if (!canvas || !canvas.width) return false;
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let found = 0;
    for (let i = 0; i < pixels.length; i += 4)
        found += pixels[i] === red && pixels[i + 1] === green && pixels[i + 2] === blue;
    return found > pixels.length / 4 / 3;
}"""
"""Whether a third of the desktop has a colour."""

CLOSED = """url => new Promise(resolve => {
    const socket = new WebSocket(url, 'binary');
    socket.onclose = event => resolve([event.code, event.reason]);
})"""

FIRST_WORDS = """url => new Promise(resolve => {
    const socket = new WebSocket(url, 'binary');
    socket.onmessage = async event => resolve(await event.data.text());
})"""
"""What the desktop says first."""

PAINT = "colour => { document.querySelector('textarea').style.background = colour }"

LISTEN = """() => {
    window.seen = [];
    for (const name of ['mousedown', 'mousemove', 'wheel', 'keydown', 'paste'])
        addEventListener(name, event => seen.push(name));
}"""


def page_of(colour: str, body: str = "") -> str:
    return "data:text/html," + quote(f"<body style='margin:0;background:{colour}'>{body}")


async def shows(viewer: Page, red: int, green: int, blue: int) -> None:
    await viewer.wait_for_function(SHOWS, arg=[red, green, blue], timeout=30_000)


async def test_a_viewer_sees_the_desktop_change_when_the_agent_navigates(stage: Stage) -> None:
    session_id = await stage.client.create_session()
    viewers = [await stage.viewer(session_id), await stage.viewer(session_id)]
    for viewer in viewers:
        await viewer.wait_for_function(CONNECTED, timeout=60_000)
        assert not await viewer.evaluate(SHOWS, [255, 0, 255])
    for colour, seen in (("magenta", (255, 0, 255)), ("cyan", (0, 255, 255))):
        stage.model.reset(agent_script(steps=1, calls=[Call("browser_navigate", {"url": page_of(colour)})]))
        events = await stage.client.send_and_read(session_id, "Show me")
        called = next(item for item in events if item.event == "tool" and item.data["status"] == "called")
        assert called.data["result"]["success"], called.data
        for viewer in viewers:
            await shows(viewer, *seen)
    assert len(await stage.containers(session_id)) == 1


async def test_what_a_person_types_arrives_in_the_page(stage: Stage) -> None:
    session_id = await stage.client.create_session()
    viewer = await stage.viewer(session_id)
    await viewer.wait_for_function(CONNECTED, timeout=60_000)
    box = "<textarea style='position:fixed;inset:0;font:40px monospace;background:yellow'></textarea>"
    async with stage.inside(session_id) as inside:
        await inside.goto(page_of("yellow", box))
        await shows(viewer, 255, 255, 0)
        await viewer.mouse.click(640, 500)
        await inside.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
        await viewer.keyboard.type('Hello, "World" {1+1=2} ~x', delay=20)
        await viewer.keyboard.press("Backspace")
        await viewer.keyboard.press("Enter")
        await viewer.keyboard.type("second line", delay=20)
        wanted = 'Hello, "World" {1+1=2} ~\nsecond line'
        await inside.wait_for_function("wanted => document.querySelector('textarea').value === wanted", arg=wanted)


async def test_who_may_only_watch_sees_what_happens_and_nothing_that_they_do_arrives(stage: Stage) -> None:
    session_id = await stage.client.create_session()
    watcher = await stage.viewer(session_id, view_only=True)
    person = await stage.viewer(session_id)
    for viewer in (watcher, person):
        await viewer.wait_for_function(CONNECTED, timeout=60_000)
    box = "<textarea style='position:fixed;inset:0;font:40px monospace;background:yellow'></textarea>"
    async with stage.inside(session_id) as inside:
        await inside.goto(page_of("yellow", box))
        for viewer in (watcher, person):
            await shows(viewer, 255, 255, 0)
        await inside.evaluate("document.querySelector('textarea').focus()")
        await inside.evaluate(LISTEN)
        # noVNC does not know that it only watches, and sends everything.
        await watcher.mouse.click(640, 500)
        await watcher.mouse.wheel(0, 300)
        await watcher.keyboard.type("from the watcher", delay=5)
        await watcher.evaluate("() => { rfb.clipboardPasteFrom('secret'); rfb.sendCtrlAltDel(); rfb.machineReboot() }")
        await watcher.keyboard.press("Control+v")
        await inside.evaluate(PAINT, "cyan")
        await shows(watcher, 0, 255, 255)
        assert await inside.evaluate("seen") == []
        await person.mouse.click(640, 500)
        await person.keyboard.type("from the person", delay=20)
        await inside.wait_for_function("document.querySelector('textarea').value === 'from the person'")
        await inside.evaluate(PAINT, "lime")
        for viewer in (watcher, person):
            await shows(viewer, 0, 255, 0)
        assert await inside.evaluate("document.querySelector('textarea').value") == "from the person"
    assert not await watcher.evaluate("window.said.some(each => each.name === 'disconnect')")


async def test_a_ticket_opens_the_desktop_once(stage: Stage) -> None:
    session_id = await stage.client.create_session()
    page = await stage.chromium.new_page()
    await page.goto(f"{stage.site}/?url=ws://127.0.0.1:1")
    address = f"{stage.address(session_id)}?ticket={await stage.ticket(session_id, view_only=False)}"
    assert await page.evaluate(FIRST_WORDS, address) == "RFB 003.008\n"
    code, reason = await page.evaluate(CLOSED, address)
    assert (code, "used up" in reason) == (4401, True)


async def test_the_page_is_told_why_it_sees_nothing(stage: Stage) -> None:
    page = await stage.chromium.new_page()
    await page.goto(f"{stage.site}/?url=ws://127.0.0.1:1")
    assert await page.evaluate(CLOSED, stage.address("0" * 32)) == [4404, "no such session"]

    session_id = await stage.client.create_session()
    viewer = await stage.viewer(session_id)
    await viewer.wait_for_function(CONNECTED, timeout=60_000)
    closed = "(async () => { window.closed_with = await (%s)(%r) })()"
    await page.evaluate(f"() => {{ {closed % (CLOSED, stage.address(session_id))} }}")
    await kill(await stage.container(session_id))
    await page.wait_for_function("window.closed_with", timeout=15_000)
    assert await page.evaluate("window.closed_with") == [4410, "the sandbox is gone"]
    await viewer.wait_for_function("window.said.some(each => each.name === 'disconnect')", timeout=15_000)

    # The next viewer gets a new desktop, with the same files behind it.
    again = await stage.viewer(session_id)
    await again.wait_for_function(CONNECTED, timeout=60_000)
    await page.evaluate(f"() => {{ window.closed_with = null; {closed % (CLOSED, stage.address(session_id))} }}")
    assert (await stage.client.http.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
    await page.wait_for_function("window.closed_with", timeout=15_000)
    assert await page.evaluate("window.closed_with") == [4410, "the session was deleted"]
    assert not await stage.containers(session_id)


async def test_a_page_of_another_origin_gets_no_desktop(stage: Stage) -> None:
    session_id = await stage.client.create_session()
    page = await stage.chromium.new_page()
    elsewhere = stage.site.replace("127.0.0.1", "localhost")
    await page.goto(f"{elsewhere}/?url=ws://127.0.0.1:1")
    assert await page.evaluate(CLOSED, stage.address(session_id)) == [1006, ""]
    assert not await stage.containers(session_id)
