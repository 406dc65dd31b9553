"""The bridge from `WS /vnc` to the VNC server's unix socket: bytes, flow control, close."""

import asyncio
import hashlib
import os
import random
import struct

import pytest
import websockets

from sandbox.bridges.vnc import KeyPresses, VncBridge
from sandbox.tests.bridging import listen, serve_bridge
from sandbox.web import Failure

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "vnc")


async def nothing_to_prepare(keysyms) -> None:
    pass


def bridge_to(path: str, prepare=nothing_to_prepare):
    async def open_bridge(handshake, viewer):
        bridge = VncBridge(viewer, handshake, prepare)
        try:
            await bridge.open(path)
        except OSError as error:
            raise Failure(503, "the desktop does not answer") from error
        return bridge

    return open_bridge


async def silent_desktop(reader, writer):
    """Serve a desktop that sends nothing until its viewer is gone."""
    await reader.read()
    writer.close()


async def test_desktop_bytes_reach_viewer_unchanged(path):
    data = random.Random(1).randbytes(24 * MIB)

    async def desktop(reader, writer):
        writer.write(b"RFB 003.008\n")
        for start in range(0, len(data), 300_001):
            writer.write(data[start : start + 300_001])
            await writer.drain()
        writer.close()

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        got = hashlib.sha256()
        first = await viewer.recv()
        assert first.startswith(b"RFB 003.008\n")
        got.update(first[12:])
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                got.update(await viewer.recv())
        assert got.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 262144, 262145])
async def test_messages_of_every_length_have_valid_frame_head(path, size):
    async def desktop(reader, writer):
        writer.write(b"x" * size)
        await silent_desktop(reader, writer)

    # The client refuses a length that is not in its shortest form.
    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        got = 0
        while got < size:
            got += len(await viewer.recv())
        assert got == size


async def test_viewer_messages_and_fragments_reach_desktop(path):
    got = bytearray()
    ended = asyncio.Event()

    async def desktop(reader, writer):
        while data := await reader.read(MIB):
            got.extend(data)
        ended.set()
        writer.close()

    data = random.Random(2).randbytes(3 * MIB)
    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        await viewer.send(data[:MIB])
        await viewer.send([data[start : start + 70_000] for start in range(MIB, len(data), 70_000)])
        await viewer.send(b"")
        for one in range(100):
            await viewer.send(bytes([one]))
        await viewer.close()
        await asyncio.wait_for(ended.wait(), 10)
    assert bytes(got) == data + bytes(range(100))


async def test_viewer_that_does_not_read_pauses_desktop_in_bounded_memory(path):
    sent = 0

    async def desktop(reader, writer):
        nonlocal sent
        try:
            while True:
                writer.write(bytes(MIB))
                await writer.drain()
                sent += MIB
        except ConnectionError:
            return

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served:
        async with served.connect(max_queue=1) as viewer:
            await viewer.recv()
            before = -1
            while sent != before:  # until the flow stops
                before = sent
                await asyncio.sleep(0.3)
            # Only the kernel's buffers have filled up.
            assert sent < 32 * MIB
            for _ in range(200):
                await viewer.recv()
            assert sent > before
            viewer.transport.abort()


async def test_desktop_that_does_not_read_pauses_viewer(path):
    async def desktop(reader, writer):
        await asyncio.sleep(60)

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await viewer.send(bytes(256 * 1024))
                    sent += 256 * 1024
        assert sent < 32 * MIB
        viewer.transport.abort()


async def test_each_viewer_has_own_connection(path):
    async def desktop(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served:
        viewers = [await served.connect() for _ in range(30)]
        for number, viewer in enumerate(viewers):
            await viewer.send(f"viewer {number}".encode())
        for number, viewer in enumerate(viewers):
            assert await viewer.recv() == f"viewer {number}".encode()
        await asyncio.gather(*(viewer.close() for viewer in viewers))


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["binary"], "binary"), (["base64", "binary"], "binary"), (["chat"], None), (None, None)]
)
async def test_binary_subprotocol_is_selected_when_offered(path, offered, chosen):
    async with listen(path, silent_desktop), serve_bridge(bridge_to(path)) as served:
        async with served.connect(subprotocols=offered) as viewer:
            assert viewer.subprotocol == chosen


async def test_offered_compression_is_not_used(path):
    async with listen(path, silent_desktop), serve_bridge(bridge_to(path)) as served:
        async with served.connect(compression="deflate") as viewer:
            assert viewer.protocol.extensions == []


async def test_viewer_gets_close_frame_when_desktop_ends(path):
    async def desktop(reader, writer):
        writer.write(b"last words")
        writer.close()

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        assert await viewer.recv() == b"last words"
        with pytest.raises(websockets.ConnectionClosedError):
            await viewer.recv()
        assert (viewer.close_code, viewer.close_reason) == (1011, "the desktop has ended the connection")


async def test_viewer_gets_close_frame_when_service_ends(path):
    async with listen(path, silent_desktop), serve_bridge(bridge_to(path)) as served:
        viewer = await served.connect()
        served.server.should_exit = True
        with pytest.raises(websockets.ConnectionClosed):
            await viewer.recv()
        assert (viewer.close_code, viewer.close_reason) == (1001, "the sandbox is ending")


async def test_text_message_is_refused(path):
    got = bytearray()

    async def desktop(reader, writer):
        got.extend(await reader.read())
        writer.close()

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        await viewer.send("hello")
        with pytest.raises(websockets.ConnectionClosedError):
            await viewer.recv()
        assert viewer.close_code == 1003 and "binary" in viewer.close_reason
    assert got == b""


async def test_viewer_close_is_answered_and_backend_connection_closed(path):
    ended = asyncio.Event()

    async def desktop(reader, writer):
        await reader.read()
        ended.set()
        writer.close()

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served:
        viewer = await served.connect()
        assert served.activity.idle_seconds == 0
        await viewer.close(1000, "bye")
        assert (viewer.close_code, viewer.close_reason) == (1000, "bye")
        await asyncio.wait_for(ended.wait(), 5)
        await _soon(lambda: served.activity._open == 0)


async def test_lost_viewer_closes_backend_connection(path):
    ended = asyncio.Event()

    async def desktop(reader, writer):
        await reader.read()
        ended.set()
        writer.close()

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served:
        viewer = await served.connect()
        viewer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5)
        await _soon(lambda: served.activity._open == 0 and not served.server.server_state.connections)


async def test_pings_are_answered_during_heavy_output(path):
    async def desktop(reader, writer):
        try:
            while True:
                writer.write(os.urandom(65536))
                await writer.drain()
        except ConnectionError:
            return

    async with listen(path, desktop), serve_bridge(bridge_to(path)) as served, served.connect() as viewer:
        for _ in range(5):
            pong = await viewer.ping()
            while not pong.done():
                await viewer.recv()
        viewer.transport.abort()


async def test_missing_desktop_refuses_handshake_with_reason(path):
    async with serve_bridge(bridge_to(path)) as served:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await served.connect()
        assert caught.value.response.status_code == 503
        assert b"the desktop does not answer" in caught.value.response.body


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic t"}])
async def test_handshake_without_token_is_refused(path, headers):
    entered = False

    async def open_bridge(handshake, viewer):
        nonlocal entered
        entered = True

    async with serve_bridge(open_bridge) as served:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await served.connect(additional_headers=headers)
        response = caught.value.response
        assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer"
        assert response.body == b'{"success":false,"message":"no or wrong token","data":null}'
        assert not entered and served.activity._open == 0


async def test_internal_error_in_handshake_returns_envelope_without_traceback(path, caplog):
    async def open_bridge(handshake, viewer):
        raise ZeroDivisionError("inner words")

    async with serve_bridge(open_bridge) as served:
        with pytest.raises(websockets.InvalidStatus) as caught:
            await served.connect()
        assert caught.value.response.status_code == 500 and b"inner words" not in caught.value.response.body
    assert "inner words" in caplog.text


async def test_request_that_is_not_handshake_returns_400(path):
    async with listen(path, silent_desktop), serve_bridge(bridge_to(path)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(
            b"GET /vnc HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 400 ") and b"not a WebSocket handshake" in answer
        writer.close()


async def test_opening_bridge_ends_with_service(path):
    opening = asyncio.Event()
    cancelled = asyncio.Event()

    async def open_bridge(handshake, viewer):
        opening.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serve_bridge(open_bridge) as served:
        viewer = asyncio.create_task(served.connect().__aenter__())
        await opening.wait()
    assert cancelled.is_set() and served.activity._open == 0
    with pytest.raises((websockets.InvalidMessage, ConnectionError)):
        await viewer


async def _soon(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def key(keysym: int, *, down: bool = True) -> bytes:
    return struct.pack(">BBxxI", 4, down, keysym)


GREETING = b"RFB 003.008\n\x01\x01"
OTHER_MESSAGES = (
    struct.pack(">Bxxx16x", 0)
    + struct.pack(">BxHii", 2, 2, 0, -258)
    + struct.pack(">BBHHHH", 3, 0, 0, 0, 4, 4)
    + struct.pack(">BBHH", 5, 1, 4, 4)
    + struct.pack(">BxxxI", 6, 5)
    + b"\x04\x01\x00\x00\x01"
    + struct.pack(">Bxxxi", 6, -8)
    + key(0x01004E2D)
    + struct.pack(">BBHHHH", 150, 1, 0, 0, 4, 4)
    + struct.pack(">BxxxIB", 248, 1, 3)
    + b"\x04\x01\x04"
    + struct.pack(">BxHHBx16x", 251, 4, 4, 1)
)
"""Every type of message, with key presses inside texts."""


@pytest.mark.parametrize("step", [1, 3, 7, 10_000])
def test_key_presses_are_found_however_messages_are_cut(step):
    presses = KeyPresses()
    stream = GREETING + OTHER_MESSAGES + key(0x61) + key(0x61, down=False) + OTHER_MESSAGES + key(0x01004E00)
    stream += struct.pack(">BBHII", 255, 0, 1, 0x0100044F, 30) + struct.pack(">BBHBBI", 255, 1, 2, 1, 1, 1) + key(0x7A)
    found = []
    for start in range(0, len(stream), step):
        found += [(start + end, keysym) for end, keysym in presses.feed(stream[start : start + step])]
    assert [keysym for _, keysym in found] == [0x61, 0x01004E00, 0x0100044F, 0x7A]
    for end, keysym in found[:2]:
        assert stream[end - 8 : end] == key(keysym)


def test_nothing_is_found_after_unknown_message():
    presses = KeyPresses()
    assert presses.feed(GREETING + b"\x63" + key(0x61)) == []
    assert presses.feed(key(0x61)) == []


async def test_input_waits_until_keyboard_has_key_and_stays_unchanged(path):
    got = bytearray()
    prepared: list[tuple[list[int], int]] = []
    release = asyncio.Event()

    async def desktop(reader, writer):
        while data := await reader.read(MIB):
            got.extend(data)
        writer.close()

    async def prepare(keysyms) -> None:
        prepared.append((list(keysyms), len(got)))
        await release.wait()

    text = "".join(chr(0x4E00 + number) for number in range(20))
    parts = [key(0x01000000 | ord(each)) + key(0x01000000 | ord(each), down=False) + key(0x61) for each in text]
    stream = GREETING + OTHER_MESSAGES + b"".join(parts) + OTHER_MESSAGES
    async with listen(path, desktop), serve_bridge(bridge_to(path, prepare)) as served, served.connect() as viewer:
        middle = len(GREETING + OTHER_MESSAGES) + 30
        await viewer.send(stream[:middle])
        await _soon(lambda: prepared)
        assert len(got) < middle
        await viewer.send(stream[middle:])
        release.set()
        await _soon(lambda: len(got) == len(stream))
    assert bytes(got) == stream
    assert [keysym for keysyms, _ in prepared for keysym in keysyms] == [0x01000000 | ord(each) for each in text]
    for keysyms, before in prepared:
        press = stream.index(key(keysyms[0]), len(GREETING + OTHER_MESSAGES))
        assert before < press + 8, "a key was pressed before the keyboard had it"


async def test_viewer_that_leaves_while_its_key_is_prepared_closes_backend_connection(path):
    ended, preparing, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def desktop(reader, writer):
        await reader.read()
        ended.set()
        writer.close()

    async def prepare(_keysyms) -> None:
        preparing.set()
        await release.wait()

    async with listen(path, desktop), serve_bridge(bridge_to(path, prepare)) as served:
        viewer = await served.connect()
        await viewer.send(GREETING + key(0x01004E00))
        await asyncio.wait_for(preparing.wait(), 10)
        viewer.transport.abort()
        release.set()
        await asyncio.wait_for(ended.wait(), 10)
