"""Clients that stop in the middle of a request, or that never read what they asked for."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from app.__main__ import server_config
from app.domain.models.event import DoneEvent, MessageEvent
from app.interfaces import bounded_transport, http_connection, limits
from app.interfaces.http_connection import HttpConnection
from tests.hostile.conftest import LONG, HostileClient, failure_of, status_of
from tests.support.eventually import eventually

CLIENTS = 500 if LONG else 20
"""Number of slow clients at once."""

SHORT = 0.4
"""The limits of the server in the short mode, in seconds."""

PART = 1 << 16

FILE_BYTES = 1 << 20

HEAD = b"GET /api/v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /api/v1/sessions/x/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    if not LONG:
        monkeypatch.setattr(http_connection, "HEAD_SECONDS", SHORT)
        monkeypatch.setattr(http_connection, "BODY_SECONDS", SHORT)
        monkeypatch.setattr(bounded_transport, "STALL_SECONDS", SHORT)
        monkeypatch.setattr(bounded_transport, "LINGER_SECONDS", SHORT)


async def read_all(hostile: HostileClient, *parts: bytes, then: bytes = b"") -> bytes:
    """Send `parts`, then `then` again and again, and return what the server sends until it closes the connection."""
    reader, writer = await hostile.connect()

    async def trickle() -> None:
        while then and not writer.is_closing():
            writer.write(then)
            await asyncio.sleep(SHORT / 8)

    async with asyncio.timeout(110), asyncio.TaskGroup() as tasks:
        writer.write(b"".join(parts))
        sending = tasks.create_task(trickle())
        response = await reader.read()
        sending.cancel()
    writer.close()
    return response


@pytest.mark.parametrize(
    ("sent", "then"),
    [(HEAD, b""), (HEAD, b"a"), (HEAD[:1], b""), (b"", b"\r\n"), (POST, b""), (POST + b"{", b"")],
    ids=["half a head", "trickling head", "one byte", "line ends", "no body", "half a body"],
)
async def test_requests_without_progress_get_408_and_are_closed(
    hostile: HostileClient, sent: bytes, then: bytes
) -> None:
    session_id = await hostile.harness.create_session()
    sent = sent.replace(b"/x/", f"/{session_id}/".encode())
    responses = await asyncio.gather(*(read_all(hostile, sent, then=then) for _ in range(CLIENTS)))
    assert {failure_of(response)[0] for response in responses} == {408}
    await eventually(lambda: not hostile.connections)


def test_idle_connections_are_kept_longer_than_proxies_and_clients_keep_them() -> None:
    assert server_config(FastAPI()).timeout_keep_alive > 60


async def test_silent_connections_are_closed(hostile: HostileClient) -> None:
    assert set(await asyncio.gather(*(read_all(hostile) for _ in range(CLIENTS)))) == {b""}


@pytest.mark.skipif(LONG, reason="with the limits of a real service this takes minutes")
async def test_body_that_arrives_too_slowly_gets_408(hostile: HostileClient, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = await hostile.harness.create_session()
    monkeypatch.setattr(http_connection, "MIN_BODY_RATE", 1000)
    response = await read_all(hostile, POST.replace(b"/x/", f"/{session_id}/".encode()), then=b" ")
    assert failure_of(response)[0] == 408


@pytest.mark.skipif(LONG, reason="with the limits of a real service this takes minutes")
async def test_rest_of_a_body_after_the_response_cannot_hold_the_connection(hostile: HostileClient) -> None:
    sent = POST.replace(b"/api/v1/sessions/x/chat", b"/nothing").replace(b"1000", b"1000000")
    response = await read_all(hostile, sent, then=b" ")
    assert status_of(response) == 404
    await eventually(lambda: not hostile.connections)


@asynccontextmanager
async def unread_requests(
    hostile: HostileClient, request: bytes, count: int, *, receive_bytes: int | None = None
) -> AsyncIterator[list[socket.socket]]:
    """Send a request `count` times, and read no response. The kernel keeps `receive_bytes` for each."""
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    for _ in range(count):
        made = socket.socket()
        made.setblocking(False)
        if receive_bytes is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sockets.append(made)
        await loop.sock_connect(made, ("127.0.0.1", hostile.port))
        await loop.sock_sendall(made, request)
    yield sockets
    for each in sockets:
        each.close()


@asynccontextmanager
async def unread_streams(
    hostile: HostileClient, session_id: str, count: int, *, receive_bytes: int | None = None
) -> AsyncIterator[list[socket.socket]]:
    """Open `count` streams of a session's events that nobody reads. The kernel keeps `receive_bytes` for each."""
    request = f"GET /api/v1/sessions/{session_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    async with unread_requests(hostile, request, count, receive_bytes=receive_bytes) as sockets:
        await eventually(lambda: hostile.harness.feed.subscriber_count == count)
        yield sockets


async def write_history(hostile: HostileClient, session_id: str, parts: int) -> None:
    for _ in range(parts):
        await hostile.harness.commit_events(session_id, MessageEvent(role="assistant", content="x" * PART))


@pytest.mark.parametrize("before", [True, False], ids=["a long history", "a run"])
async def test_unread_streams_keep_little_and_are_closed(hostile: HostileClient, before: bool) -> None:
    session_id = await hostile.harness.create_session()
    if before:
        await write_history(hostile, session_id, 100)
    async with unread_streams(hostile, session_id, CLIENTS):
        if not before:
            await write_history(hostile, session_id, 100)
        await hostile.harness.commit_events(session_id, DoneEvent())
        most = bounded_transport.WRITE_BUFFER_BYTES + 2 * PART
        await eventually(lambda: any(waiting(each) for each in hostile.connections))
        assert max(waiting(each) for each in hostile.connections) <= most
        await eventually(lambda: not hostile.connections, seconds=100)
        await eventually(lambda: hostile.harness.feed.subscriber_count == 0)


async def test_unread_responses_keep_little_and_are_limited_together(
    hostile: HostileClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNREAD", 5 * FILE_BYTES)
    session_id = await hostile.harness.create_session()
    sandbox = await hostile.harness.sandboxes.acquire(session_id)
    await sandbox.file_write("large.txt", "x" * FILE_BYTES, append=False, sudo=False)
    body = b'{"file": "large.txt"}'
    head = f"POST /api/v1/sessions/{session_id}/file HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    async with unread_requests(hostile, request, 4):
        await eventually(lambda: sum(waiting(each) > 0 for each in hostile.connections) == 4)
        assert max(waiting(each) for each in hostile.connections) <= bounded_transport.WRITE_BUFFER_BYTES + limits.PART
        closing = request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        refused = await hostile.exchange(request)  # the server closes the connection
        assert failure_of(refused)[0] == 429
        assert b"retry-after:" in refused.lower()
        await eventually(lambda: not hostile.connections, seconds=100)
    assert len(await hostile.exchange(closing)) > FILE_BYTES


async def test_viewer_that_does_not_read_is_dropped(hostile: HostileClient) -> None:
    session_id, _ = await hostile.server.create_session(unlimited=True)
    viewer = await hostile.server.connect_viewer(session_id)
    await eventually(lambda: hostile.server.viewers == 1)
    await eventually(lambda: hostile.server.viewers == 0, seconds=40)
    viewer.transport.abort()


def waiting(connection: HttpConnection) -> int:
    return connection.transport.get_write_buffer_size()


async def test_client_that_reads_slowly_receives_everything(hostile: HostileClient) -> None:
    session_id = await hostile.harness.create_session()
    await write_history(hostile, session_id, 100)
    loop = asyncio.get_running_loop()
    size = 0
    async with unread_streams(hostile, session_id, 1) as (reader,), asyncio.timeout(100):
        while size < 100 * PART:
            await asyncio.sleep(SHORT / 40)
            size += len(await loop.sock_recv(reader, 2 * PART))
    assert size >= 100 * PART


async def test_client_that_reads_next_to_nothing_is_dropped(hostile: HostileClient) -> None:
    session_id = await hostile.harness.create_session()
    await write_history(hostile, session_id, 100)
    async with unread_streams(hostile, session_id, 1, receive_bytes=4096) as (reader,):
        loop = asyncio.get_running_loop()

        async def is_dropped() -> bool:
            assert await loop.sock_recv(reader, 1)
            return not hostile.connections

        await eventually(is_dropped, seconds=100, interval=SHORT / 20)


@pytest.mark.skipif(LONG, reason="with the limits of a real service this takes minutes")
async def test_quiet_streams_and_viewers_outlive_the_limits(hostile: HostileClient) -> None:
    session_id, sandbox = await hostile.server.create_session()
    viewer = await hostile.server.connect_viewer(session_id)
    async with unread_streams(hostile, session_id, 1) as (stream,):
        for _ in range(3):
            assert failure_of(await read_all(hostile, HEAD))[0] == 408
        await hostile.harness.commit_events(session_id, MessageEvent(role="assistant", content="late"))
        received = b""
        async with asyncio.timeout(30):
            while b"late" not in received:
                received += await asyncio.get_running_loop().sock_recv(stream, PART)
    await sandbox.opened.wait()
    sandbox.desktops[0].outgoing.put_nowait(b"late")
    assert await viewer.recv() == b"late"
    await viewer.close()
