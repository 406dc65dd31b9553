"""A connection to a sandbox's desktop: `WS /vnc` of the sandbox service."""

import asyncio
import socket
from typing import cast
from urllib.parse import urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from app.domain.errors import SandboxUnavailable
from app.domain.external.sandbox import Desktop

OPEN_SECONDS = 10.0
"""How long the handshake may take; the sandbox connects to its VNC server meanwhile."""

SEND_SECONDS = 60.0
"""How long the desktop may take no input before its connection counts as broken: nobody would see its viewer leave."""

CLOSE_SECONDS = 1.0

MAX_MESSAGE = 1 << 20
MAX_QUEUE = 8
"""Messages that wait to be read, of `MAX_MESSAGE` bytes at most; with more, nothing is read from the sandbox."""

NORMAL_CLOSURE = 1000
UNAUTHORIZED = 401
_MAX_WORDS = 300

_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)
"""A sandbox that is gone without a word is found out in half a minute by the kernel. WebSocket pings would do it too,
but theirs are answered behind everything that a slow viewer has not read yet: he would be taken for a dead sandbox."""


async def open_desktop(address: str, token: str) -> Desktop:
    """A connection to the desktop of the sandbox at `address` (its base URL); `token` "" sends none.

    Raises:
        SandboxUnavailable: the sandbox does not answer, refuses, or has no desktop now; says why.
    """
    url = f"ws{address.removeprefix('http').rstrip('/')}/vnc"
    parts = urlsplit(url)
    try:
        connection = await connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"} if token else {},
            user_agent_header=None,
            subprotocols=[Subprotocol("binary")],
            compression=None,
            proxy=None,
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,
            max_size=MAX_MESSAGE,
            max_queue=MAX_QUEUE,
            # Said a second time, so that a redirect to elsewhere is not followed: a sandbox is not to be trusted.
            host=parts.hostname,
            port=parts.port or (443 if parts.scheme == "wss" else 80),
        )
    except InvalidStatus as error:
        raise _refusal(error.response.status_code, error.response.body) from error
    except TimeoutError:
        raise SandboxUnavailable(f"The sandbox's desktop did not answer within {OPEN_SECONDS:g} s.") from None
    except OSError as error:
        raise SandboxUnavailable("The sandbox cannot be reached: it does not run.") from error
    except InvalidMessage as error:
        raise SandboxUnavailable("The connection to the sandbox broke before its desktop was there.") from error
    except (InvalidHandshake, InvalidURI, ValueError) as error:
        raise SandboxUnavailable("The sandbox's desktop gave an answer that makes no sense.") from error
    _keep_alive(connection)
    return SandboxDesktop(connection)


class SandboxDesktop:
    """`Desktop` over a WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes:
        """See `Desktop.receive`."""
        try:
            data = b""
            while not data:
                data = await self._connection.recv(decode=False)
        except ConnectionClosed as closed:
            said = closed.rcvd
            if said is not None and said.code == NORMAL_CLOSURE:
                return b""
            raise SandboxUnavailable(_broken(said.reason if said else "")) from closed
        return data

    async def send(self, data: bytes) -> None:
        """See `Desktop.send`."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._connection.send(data)
        except ConnectionClosed as closed:
            raise SandboxUnavailable(_broken(closed.rcvd.reason if closed.rcvd else "")) from closed
        except TimeoutError:
            raise SandboxUnavailable(f"The desktop took no input for {SEND_SECONDS:g} s.") from None

    async def close(self) -> None:
        """See `Desktop.close`."""
        try:
            # The library waits without a limit for what was written before to be taken.
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._connection.close()
        except TimeoutError:
            self._connection.transport.abort()


def _refusal(status: int, body: bytes | bytearray | None) -> SandboxUnavailable:
    if status == UNAUTHORIZED:
        return SandboxUnavailable("The sandbox refused our token (SANDBOX_TOKEN).")
    try:
        envelope: object = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        envelope = None
    said = cast("dict[str, object]", envelope).get("message") if isinstance(envelope, dict) else None
    if isinstance(said, str) and said:
        return SandboxUnavailable(said[:_MAX_WORDS])
    return SandboxUnavailable(f"The sandbox shows no desktop (HTTP {status}).")


def _broken(reason: str) -> str:
    return f"The connection to the desktop broke: {reason}" if reason else "The connection to the desktop broke."


def _keep_alive(connection: ClientConnection) -> None:
    sock = connection.transport.get_extra_info("socket")
    for level, name, value in _KEEPALIVE:
        option = getattr(socket, name, None)  # not all of them exist everywhere
        if option is not None:
            sock.setsockopt(level, option, value)
