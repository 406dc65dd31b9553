"""Connections to a sandbox's desktop, over real sockets to a server that acts as the sandbox."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from websockets.asyncio.server import Request, Response, Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client import desktop as desktop_module
from app.infrastructure.sandbox.client.desktop import MAX_MESSAGE, open_desktop

MIB = 1 << 20
Script = Callable[[ServerConnection], Awaitable[None]]


async def idle(connection: ServerConnection) -> None:
    await connection.wait_closed()


@asynccontextmanager
async def sandbox(script: Script = idle, **options: object) -> AsyncIterator[tuple[str, Server]]:
    """Serve a desktop that behaves as `script` and return its address."""
    async with serve(
        script, "127.0.0.1", 0, subprotocols=[Subprotocol("binary")], max_size=4 * MIB, **options
    ) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", server


async def test_handshake_carries_token_and_subprotocol_without_compression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    asked: list[Request] = []

    async def note(connection: ServerConnection) -> None:
        assert connection.request is not None
        asked.append(connection.request)

    async with sandbox(note) as (address, _):
        desktop = await open_desktop(f"{address}/", "a-token")
        assert await desktop.receive() == b""
        await desktop.close()
    (request,) = asked
    assert request.path == "/vnc"
    assert request.headers["Authorization"] == "Bearer a-token"
    assert request.headers["Sec-WebSocket-Protocol"] == "binary"
    assert "Sec-WebSocket-Extensions" not in request.headers


async def test_bytes_pass_unchanged_in_both_directions() -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            assert isinstance(message, bytes)
            await connection.send(message)

    pieces = [bytes([n % 256]) * size for n, size in enumerate((1, 125, 126, 65_535, 65_536, MAX_MESSAGE))]
    async with sandbox(echo) as (address, _):
        desktop = await open_desktop(address, "")
        for piece in pieces:
            await desktop.send(piece)
            assert await desktop.receive() == piece
        await desktop.close()
        await desktop.close()


async def test_empty_message_is_not_end_of_connection() -> None:
    async def stutter(connection: ServerConnection) -> None:
        await connection.send(b"")
        await connection.send(b"more")

    async with sandbox(stutter) as (address, _):
        desktop = await open_desktop(address, "")
        assert await desktop.receive() == b"more"
        assert await desktop.receive() == b""
        await desktop.close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"", "SANDBOX_TOKEN"),
        (503, json.dumps({"success": False, "message": "Xvnc is starting", "data": None}).encode(), "Xvnc is starting"),
        (404, b"nothing here", "HTTP 404"),
        (200, b"hello", "HTTP 200"),
    ],
)
async def test_refused_handshake_error_quotes_reason(status: int, body: bytes, words: str) -> None:
    def refuse(connection: ServerConnection, _request: Request) -> Response:
        response = connection.respond(HTTPStatus(status), "")
        response.body = body
        response.headers.pop("Content-Length", None)
        response.headers["Content-Length"] = str(len(body))
        return response

    async with sandbox(process_request=refuse) as (address, _):
        with pytest.raises(SandboxUnavailable, match=words):
            await open_desktop(address, "t")


async def test_redirect_of_sandbox_is_not_followed() -> None:
    visited = asyncio.Event()

    async def elsewhere(_connection: ServerConnection) -> None:
        visited.set()

    async with sandbox(elsewhere) as (target, _):

        def redirect(connection: ServerConnection, _request: Request) -> Response:
            response = connection.respond(HTTPStatus.FOUND, "")
            response.headers["Location"] = f"ws{target.removeprefix('http')}/vnc"
            return response

        async with sandbox(process_request=redirect) as (address, _):
            with pytest.raises(SandboxUnavailable, match="malformed"):
                await open_desktop(address, "t")
    assert not visited.is_set()


async def test_refused_connection_raises_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(SandboxUnavailable, match="does not run"):
            await open_desktop(f"http://127.0.0.1:{unused.getsockname()[1]}", "t")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n\r\n"])
async def test_server_that_is_not_sandbox_raises_unavailable(answer: bytes) -> None:
    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        with pytest.raises(SandboxUnavailable):
            await open_desktop(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t")


async def test_silent_sandbox_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desktop_module, "OPEN_SECONDS", 0.2)
    left = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        left.set()
        writer.close()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        with pytest.raises(SandboxUnavailable, match=r"0\.2 s"):
            await open_desktop(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t")
        async with asyncio.timeout(30):
            await left.wait()


async def test_cancellation_while_opening_closes_connection() -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        try:
            while await reader.read(1000):
                pass
        except ConnectionError:
            pass
        left.set()
        writer.close()

    async with await asyncio.start_server(silence, "127.0.0.1", 0) as server:
        opening = asyncio.create_task(open_desktop(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "t"))
        await came.wait()
        opening.cancel()
        async with asyncio.timeout(30):
            await left.wait()


async def test_broken_connection_raises_instead_of_ending() -> None:
    async def die(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with sandbox(die) as (address, _):
        desktop = await open_desktop(address, "")
        await desktop.send(b"x")
        with pytest.raises(SandboxUnavailable, match="broke"):
            await desktop.receive()
        with pytest.raises(SandboxUnavailable, match="broke"):
            await desktop.send(b"y")
        await desktop.close()


async def test_close_reason_of_sandbox_is_reported() -> None:
    async def give_up(connection: ServerConnection) -> None:
        await connection.close(1011, "Xvnc ended")

    async with sandbox(give_up) as (address, _):
        desktop = await open_desktop(address, "")
        with pytest.raises(SandboxUnavailable, match="Xvnc ended"):
            await desktop.receive()
        await desktop.close()


async def test_oversized_message_breaks_connection() -> None:
    async def flood(connection: ServerConnection) -> None:
        await connection.send(bytes(MAX_MESSAGE + 1))
        await connection.wait_closed()

    async with sandbox(flood) as (address, _):
        desktop = await open_desktop(address, "")
        with pytest.raises(SandboxUnavailable, match="broke"):
            await desktop.receive()
        await desktop.close()


async def test_unread_data_pauses_sandbox() -> None:
    sent = 0

    async def flood(connection: ServerConnection) -> None:
        nonlocal sent
        try:
            while True:
                await connection.send(bytes(MIB // 4))
                sent += MIB // 4
        except ConnectionClosed:
            pass

    async with sandbox(flood) as (address, _):
        desktop = await open_desktop(address, "")
        last = -1
        while last != sent:
            last = sent
            await asyncio.sleep(0.5)
        assert sent < 24 * MIB
        # Closing a connection on which the sandbox still sends does not wait for its close frame.
        async with asyncio.timeout(desktop_module.CLOSE_SECONDS + 20):
            await desktop.close()


async def test_desktop_that_does_not_read_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await over.wait()
        connection.transport.abort()

    async with sandbox(deaf) as (address, _):
        desktop = await open_desktop(address, "")
        monkeypatch.setattr(desktop_module, "SEND_SECONDS", 0.3)
        with pytest.raises(SandboxUnavailable, match="took no input"):
            while True:
                await desktop.send(bytes(MIB))
        async with asyncio.timeout(desktop_module.CLOSE_SECONDS + 20):
            await desktop.close()
        over.set()
