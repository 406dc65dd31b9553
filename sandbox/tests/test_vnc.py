"""The bridge from `WS /vnc` to the VNC server's unix socket: bytes, flow control, close."""

import asyncio
import hashlib
import os
import random

import pytest
import websockets

from sandbox.bridges.vnc import VncBridge
from sandbox.tests.bridging import listen, serve_bridge
from sandbox.web import Failure

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "vnc")


def bridge_to(path: str):
    async def open_bridge(handshake, viewer):
        bridge = VncBridge(viewer, handshake)
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
