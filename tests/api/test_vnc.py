"""Endpoint 9: a session's desktop over a WebSocket. The viewers and the server are real, the desktop is scripted."""

import asyncio
import json
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol

from app.application.services.desktop import MAX_EARLY_BYTES
from app.domain.errors import SandboxFailure, SandboxUnavailable, StoreUnavailable
from app.interfaces import bounded_transport
from app.interfaces.api import vnc
from app.interfaces.viewer_connection import MAX_FRAGMENTS, MAX_MESSAGE
from tests.api.vnc_harness import MIB, VncHarness, close_reason
from tests.support.api_harness import API, ApiHarness
from tests.support.eventually import eventually

BUFFERS = 24 * MIB
"""Maximum number of bytes in the buffers between a desktop and a viewer: two sockets' and the service's own."""


async def settled(value: Callable[[], int]) -> int:
    """Return the value once it has not changed for half a second, in which the other tasks could run."""
    last, looks = value(), 0
    async with asyncio.timeout(30):
        while looks < 25:
            await asyncio.sleep(0.02)
            last, looks = value(), looks + 1 if value() == last else 0
    return last


async def read(viewer: ClientConnection, size: int) -> bytes:
    data = bytearray()
    async with asyncio.timeout(20):
        while len(data) < size:
            data += await viewer.recv(decode=False)
    return bytes(data)


async def test_bytes_pass_unchanged_in_both_directions(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    dice = random.Random(7)
    pieces = [dice.randbytes(size) for size in (1, 125, 126, 127, 65_535, 65_536, 400_000, MAX_MESSAGE, 1)]
    for piece in pieces:
        screen.desktops[0].outgoing.put_nowait(piece)
        await viewer.send(piece)
    assert await read(viewer, sum(map(len, pieces))) == b"".join(pieces)
    await eventually(lambda: screen.desktops[0].received == b"".join(pieces))
    await viewer.close()
    await screen.desktops[0].closed.wait()


@pytest.mark.parametrize(
    ("offered", "chosen"), [(None, None), (["binary"], "binary"), (["base64", "binary"], "binary")]
)
async def test_offered_subprotocol_is_accepted(
    vnc_harness: VncHarness, offered: list[Subprotocol] | None, chosen: str | None
) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id, subprotocols=offered)
    assert viewer.subprotocol == chosen
    await screen.opened.wait()
    screen.desktops[0].outgoing.put_nowait(b"RFB 003.008\n")
    assert await viewer.recv() == b"RFB 003.008\n"
    await viewer.close()


async def test_unknown_subprotocol_returns_400_envelope(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    with pytest.raises(InvalidStatus) as caught:
        await vnc_harness.connect_viewer(session_id, subprotocols=["base64"])
    assert caught.value.response.status_code == 400
    assert "binary" in json.loads(caught.value.response.body or b"")["msg"]
    assert not screen.opened.is_set()


async def test_refused_handshakes_log_no_error(vnc_harness: VncHarness, caplog: pytest.LogCaptureFixture) -> None:
    url = f"ws://127.0.0.1:{vnc_harness.port}"
    for path, subprotocols in ((vnc_harness.path("any"), [Subprotocol("base64")]), ("/nothing", None)):
        with pytest.raises(InvalidStatus):
            await connect(url + path, proxy=None, subprotocols=subprotocols)
    assert vnc_harness.server is not None
    tasks = vnc_harness.server.server_state.tasks
    await eventually(lambda: not tasks)
    assert caplog.records == []


async def test_exception_in_middleware_refuses_handshake_with_500_envelope(
    vnc_harness: VncHarness, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise ValueError("secret detail")

    vnc_harness.api.app.add_middleware(Broken)
    with pytest.raises(InvalidStatus) as caught:
        await vnc_harness.connect_viewer("any")
    assert caught.value.response.status_code == 500
    assert json.loads(caught.value.response.body or b"")["code"] == 500
    assert caplog.text.count("Traceback") == 1


async def test_sandbox_starts_while_viewer_waits(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.may_start.clear()
    viewer = await vnc_harness.connect_viewer(session_id)
    await eventually(lambda: vnc_harness.viewers == 1)
    assert vnc_harness.api.sandboxes.starts == 0
    vnc_harness.api.sandboxes.may_start.set()
    await screen.opened.wait()
    screen.desktops[0].outgoing.put_nowait(b"hello")
    assert await viewer.recv() == b"hello"
    assert vnc_harness.api.sandboxes.starts == 1
    await viewer.close()


@pytest.mark.parametrize("rudely", [False, True])
async def test_viewer_that_leaves_during_start_ends_connection(vnc_harness: VncHarness, rudely: bool) -> None:
    session_id, screen = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.may_start.clear()
    viewer = await vnc_harness.connect_viewer(session_id)
    await eventually(lambda: vnc_harness.viewers == 1)
    if rudely:
        viewer.transport.abort()
    else:
        await viewer.close()
    await eventually(lambda: vnc_harness.viewers == 0)
    vnc_harness.api.sandboxes.may_start.set()
    assert not screen.opened.is_set()


async def test_input_before_desktop_is_ready_is_delivered_later(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.may_start.clear()
    viewer = await vnc_harness.connect_viewer(session_id)
    await viewer.send(b"early ")
    await viewer.send(b"bird")
    await (await viewer.ping())
    vnc_harness.api.sandboxes.may_start.set()
    await screen.opened.wait()
    await viewer.send(b" sings")
    await eventually(lambda: screen.desktops[0].received == b"early bird sings")
    await viewer.close()


async def test_too_much_early_input_closes_connection(vnc_harness: VncHarness) -> None:
    session_id, _ = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.may_start.clear()
    viewer = await vnc_harness.connect_viewer(session_id)
    for _ in range(3):
        await viewer.send(bytes(MAX_EARLY_BYTES // 2))
    code, reason = await close_reason(viewer)
    assert (code, str(MAX_EARLY_BYTES) in reason) == (1009, True)
    vnc_harness.api.sandboxes.may_start.set()


@pytest.mark.parametrize("session_id", ["0" * 32, "x" * 65, "a%20b"])
async def test_unknown_session_closes_with_4404(vnc_harness: VncHarness, session_id: str) -> None:
    assert await close_reason(await vnc_harness.connect_viewer(session_id)) == (4404, "no such session")


async def test_sandbox_start_failure_closes_with_reason(vnc_harness: VncHarness) -> None:
    session_id, _ = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.refusal = SandboxUnavailable("Docker does not answer on this machine.")
    assert await close_reason(await vnc_harness.connect_viewer(session_id)) == (
        4503,
        "Docker does not answer on this machine.",
    )


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (SandboxUnavailable("no desktop now"), 4503),
        (SandboxFailure("this sandbox has no desktop", status=404), 4404),
        (SandboxFailure("it is broken", status=500), 4502),
    ],
)
async def test_sandbox_without_desktop_closes_with_reason(
    vnc_harness: VncHarness, refusal: Exception, code: int
) -> None:
    session_id, screen = await vnc_harness.create_session()
    screen.refusal = refusal
    assert await close_reason(await vnc_harness.connect_viewer(session_id)) == (code, str(refusal))


async def test_long_close_reason_is_cut_between_characters(vnc_harness: VncHarness) -> None:
    session_id, _ = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.refusal = SandboxUnavailable("x" + "é" * 200)
    code, reason = await close_reason(await vnc_harness.connect_viewer(session_id))
    assert code == 4503
    assert reason == "x" + "é" * 59 + "…"


async def test_desktop_end_closes_viewer_with_1000(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    screen.desktops[0].outgoing.put_nowait(b"last words")
    screen.desktops[0].outgoing.put_nowait(b"")
    assert await viewer.recv() == b"last words"
    assert await close_reason(viewer) == (1000, "the desktop ended the connection")
    await screen.desktops[0].closed.wait()


async def test_sandbox_death_closes_viewers_with_4410(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewers = [await vnc_harness.connect_viewer(session_id) for _ in range(3)]
    await eventually(lambda: len(screen.desktops) == 3)
    for desktop in screen.desktops:
        desktop.outgoing.put_nowait(SandboxUnavailable("The connection to the desktop broke."))
    assert {await close_reason(viewer) for viewer in viewers} == {(4410, "the sandbox is gone")}


async def test_session_deletion_closes_viewers_with_4410(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    other, _ = await vnc_harness.create_session()
    viewers, bystander = (
        [await vnc_harness.connect_viewer(session_id) for _ in range(3)],
        await vnc_harness.connect_viewer(other),
    )
    await eventually(lambda: len(screen.desktops) == 3)
    assert (await vnc_harness.api.client.delete(f"{API}/{session_id}")).status_code == 200
    assert {await close_reason(viewer) for viewer in viewers} == {(4410, "the session was deleted")}
    await eventually(lambda: vnc_harness.viewers == 1)
    await bystander.close()


async def test_session_deletion_closes_waiting_viewer(vnc_harness: VncHarness) -> None:
    session_id, _ = await vnc_harness.create_session()
    vnc_harness.api.sandboxes.may_start.clear()
    viewer = await vnc_harness.connect_viewer(session_id)
    await eventually(lambda: vnc_harness.viewers == 1)
    await vnc_harness.api.client.delete(f"{API}/{session_id}")
    assert await close_reason(viewer) == (4410, "the session was deleted")
    vnc_harness.api.sandboxes.may_start.set()


async def test_service_shutdown_closes_viewers_with_1001(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    vnc_harness.api.services.end_streams()
    assert await close_reason(viewer) == (1001, "the service is shutting down")


async def test_server_shuts_down_in_time_whatever_viewers_do(caplog: pytest.LogCaptureFixture) -> None:
    async with VncHarness(drain_seconds=30).run() as vnc_harness:
        session_id, screen = await vnc_harness.create_session(unlimited=True)
        unread = await open_viewer_without_reading(vnc_harness, session_id)
        await settled(lambda: screen.desktops[0].bytes_sent)
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert vnc_harness.viewers == 0
    assert "Traceback" not in caplog.text
    unread.close()


async def test_viewer_that_answers_no_ping_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_transport, "LINGER_SECONDS", 0.1)
    async with VncHarness(ping_seconds=0.1, pong_seconds=0.2).run() as vnc_harness:
        session_id, screen = await vnc_harness.create_session(unlimited=True)
        unread = await open_viewer_without_reading(vnc_harness, session_id)
        await eventually(lambda: not vnc_harness.connections)
        await screen.desktops[0].closed.wait()
        unread.close()


async def test_unread_connection_ends_with_its_desktop(
    vnc_harness: VncHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_transport, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(vnc, "CLOSE_SECONDS", 0.1)
    session_id, screen = await vnc_harness.create_session(unlimited=True)
    unread = await open_viewer_without_reading(vnc_harness, session_id)
    await settled(lambda: screen.desktops[0].bytes_sent)
    await vnc_harness.api.client.delete(f"{API}/{session_id}")
    await eventually(lambda: not vnc_harness.connections)
    unread.close()


async def test_text_frame_closes_with_1003(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    await viewer.send("words")
    assert await close_reason(viewer) == (1003, "only binary frames are understood")
    assert screen.desktops[0].received == b""


async def test_too_large_message_closes_with_1009(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    with pytest.raises(ConnectionClosed):
        await viewer.send(bytes(MAX_MESSAGE + 1))
        await viewer.recv()
    await screen.desktops[0].closed.wait()
    assert screen.desktops[0].received == b""


async def test_message_with_too_many_fragments_closes_with_1009(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    with pytest.raises(ConnectionClosed) as closed:
        await viewer.send([b"", *[b""] * MAX_FRAGMENTS, b"end"])
        async with asyncio.timeout(30):
            await viewer.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    await screen.desktops[0].closed.wait()


async def open_viewer_without_reading(vnc_harness: VncHarness, session_id: str) -> socket.socket:
    """Open a viewer's connection without a WebSocket library; it reads nothing after the handshake."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", vnc_harness.port))
    request = (
        f"GET {vnc_harness.path(session_id)} HTTP/1.1\r\nHost: 127.0.0.1:{vnc_harness.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await loop.sock_sendall(sock, request.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await loop.sock_recv(sock, 1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return sock


async def test_viewer_that_does_not_read_holds_bounded_memory_and_blocks_no_one(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session(unlimited=True)
    unread = await open_viewer_without_reading(vnc_harness, session_id)
    assert await settled(lambda: screen.desktops[0].bytes_sent) < BUFFERS
    viewer = await vnc_harness.connect_viewer(session_id)
    await read(viewer, 2 * BUFFERS)
    viewer.transport.abort()
    unread.close()
    await eventually(lambda: vnc_harness.viewers == 0)


async def test_viewer_that_reads_late_receives_everything(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session(unlimited=True)
    viewer = await vnc_harness.connect_viewer(session_id, max_queue=1)
    await screen.opened.wait()
    shown = await settled(lambda: screen.desktops[0].bytes_sent)
    data = await read(viewer, shown)
    assert data == b"".join(n.to_bytes(8, "big") * 8192 for n in range(0, len(data), 65_536))
    viewer.transport.abort()


async def test_desktop_that_does_not_read_blocks_its_viewer(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session()
    viewer = await vnc_harness.connect_viewer(session_id)
    await screen.opened.wait()
    desktop = screen.desktops[0]
    desktop.accepts_input.clear()
    sent = 0
    piece = os.urandom(64 * 1024)

    async def talk() -> None:
        nonlocal sent
        while True:
            await viewer.send(piece)
            sent += len(piece)

    talking = asyncio.create_task(talk())
    assert await settled(lambda: sent) < BUFFERS
    desktop.accepts_input.set()
    await eventually(lambda: sent > 2 * BUFFERS)
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    await eventually(lambda: len(desktop.received) >= sent)  # an aborted connection loses what it has not sent yet
    viewer.transport.abort()
    await desktop.closed.wait()
    whole = desktop.received[:sent] == piece * (sent // len(piece))
    assert whole


async def test_pongs_do_not_accumulate_for_viewer_that_does_not_read(vnc_harness: VncHarness) -> None:
    session_id, screen = await vnc_harness.create_session(unlimited=True)
    unread = await open_viewer_without_reading(vnc_harness, session_id)
    await settled(lambda: screen.desktops[0].bytes_sent)
    (connection,) = vnc_harness.connections
    before = connection.transport.get_write_buffer_size()
    pings = Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 1000
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        for _ in range(40):
            await loop.sock_sendall(unread, pings)
    await eventually(lambda: connection.conn.reader.buffer == b"")
    assert connection.transport.get_write_buffer_size() == before
    unread.close()


async def test_unexpected_error_closes_with_1011_without_details(
    vnc_harness: VncHarness, caplog: pytest.LogCaptureFixture
) -> None:
    session_id, screen = await vnc_harness.create_session()
    screen.refusal = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        code, reason = await close_reason(await vnc_harness.connect_viewer(session_id))
    assert code == 1011
    assert "secret" not in reason
    assert "secret detail" in caplog.text


async def test_unavailable_store_closes_with_4503(vnc_harness: VncHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id, _ = await vnc_harness.create_session()

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(vnc_harness.api.store, "get", away)
    assert await close_reason(await vnc_harness.connect_viewer(session_id)) == (4503, "the disk is full")


async def test_plain_http_request_returns_426(harness: ApiHarness, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{API}/{await harness.create_session()}/vnc")
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.json()["code"] == 426
    assert "WebSocket" in answer.json()["msg"]
    assert (await client.post(f"{API}/x/vnc")).status_code == 405


@pytest.mark.parametrize("path", ["/health", f"{API}/x/chat", "/nowhere"])
async def test_websocket_to_other_path_returns_404_envelope(vnc_harness: VncHarness, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(f"ws://127.0.0.1:{vnc_harness.port}{path}", proxy=None)
    assert caught.value.response.status_code == 404
    assert json.loads(caught.value.response.body or b"")["code"] == 404
