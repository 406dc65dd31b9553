"""The connection to a sandbox's desktop: `WS /vnc` of the sandbox's API."""

import asyncio
import socket
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.external.sandbox import Desktop
from app.infrastructure.sandbox.client.api_client import open_envelope

OPEN_SECONDS = 10.0
"""Time limit in seconds for the handshake, during which the sandbox connects to its VNC server."""

SEND_SECONDS = 60.0
"""Time limit in seconds for the desktop to take input; without one, a viewer who leaves would go unnoticed."""

CLOSE_SECONDS = 1.0
"""Time limit in seconds to close the connection in order."""

MAX_MESSAGE = 1 << 20
"""Maximum size of a message in bytes."""

MAX_QUEUE = 8
"""Maximum number of messages that wait to be received; when reached, nothing more is read from the sandbox."""

NORMAL_CLOSURE = 1000

_MAX_REASON = 300
"""Maximum number of characters of a reason that the sandbox gives."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)
"""Socket options with which the kernel detects a vanished sandbox within half a minute.

WebSocket pings are not used: their answers queue behind what a slow viewer has not read yet, so a slow viewer would
look like a dead sandbox.
"""


async def open_desktop(address: str, token: str) -> Desktop:
    """Connect to the desktop of a sandbox.

    Args:
        address: The base URL of the sandbox.
        token: The sandbox's token; "" to send none.

    Raises:
        SandboxUnavailable: The sandbox does not answer, refuses, or has no desktop now.
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
            # With an explicit host and port, no redirect leads elsewhere: a sandbox is not trusted.
            host=parts.hostname,
            port=parts.port or (443 if parts.scheme == "wss" else 80),
        )
    except InvalidStatus as error:
        raise _handshake_error(error.response.status_code, error.response.body) from error
    except TimeoutError:
        raise SandboxUnavailable(f"The sandbox's desktop did not answer within {OPEN_SECONDS:g} s.") from None
    except OSError as error:
        raise SandboxUnavailable("The sandbox cannot be reached: it does not run.") from error
    except InvalidMessage as error:
        raise SandboxUnavailable("The connection to the sandbox broke before its desktop answered.") from error
    except (InvalidHandshake, InvalidURI, ValueError) as error:
        raise SandboxUnavailable("The sandbox's desktop gave a malformed answer.") from error
    _keep_alive(connection)
    return SandboxDesktop(connection)


class SandboxDesktop:
    """`Desktop` over a WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> bytes:
        """Implement `Desktop.receive`."""
        try:
            data = b""
            while not data:
                data = await self._connection.recv(decode=False)
        except ConnectionClosed as closed:
            close_frame = closed.rcvd
            if close_frame is not None and close_frame.code == NORMAL_CLOSURE:
                return b""
            raise _broken(closed) from closed
        return data

    async def send(self, data: bytes) -> None:
        """Implement `Desktop.send`."""
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._connection.send(data)
        except ConnectionClosed as closed:
            raise _broken(closed) from closed
        except TimeoutError:
            raise SandboxUnavailable(f"The desktop took no input for {SEND_SECONDS:g} s.") from None

    async def close(self) -> None:
        """Implement `Desktop.close`."""
        try:
            # The library waits without a limit until earlier messages are written.
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._connection.close()
        except TimeoutError:
            self._connection.transport.abort()


def _handshake_error(status: int, body: bytes | bytearray | None) -> SandboxUnavailable:
    try:
        open_envelope(status, body or b"")
    except SandboxUnavailable as error:
        return error
    except SandboxFailure as failure:
        return SandboxUnavailable(str(failure)[:_MAX_REASON])
    return SandboxUnavailable(f"The sandbox shows no desktop (HTTP {status}).")


def _broken(closed: ConnectionClosed) -> SandboxUnavailable:
    reason = closed.rcvd.reason if closed.rcvd else ""
    return SandboxUnavailable(f"The connection to the desktop broke{f': {reason}' if reason else '.'}")


def _keep_alive(connection: ClientConnection) -> None:
    sock = connection.transport.get_extra_info("socket")
    for level, name, value in _KEEPALIVE:
        option = getattr(socket, name, None)  # some systems lack some of them
        if option is not None:
            sock.setsockopt(level, option, value)
