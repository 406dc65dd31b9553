"""Asking Chromium to close itself, which it does more thoroughly than on a signal: cookies are written down."""

import asyncio

_CLOSE = b'{"id":1,"method":"Browser.close"}'
# A WebSocket message, masked with zeros: too little for a library that takes longer to load than this to send.
_MESSAGE = bytes((0x81, 0x80 | len(_CLOSE))) + bytes(4) + _CLOSE


async def close_browser(address: str) -> None:
    """Asks the one whose DevTools are at `address`, as in `127.0.0.1:9222/devtools/browser/<id>`; returns when it has
    hung up. Raises OSError, asyncio.IncompleteReadError."""
    host, _, path = address.partition("/")
    name, _, port = host.partition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        lines = (
            f"GET /{path} HTTP/1.1",
            f"Host: {host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        )
        writer.write("\r\n".join((*lines, "", "")).encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_MESSAGE)
        while await reader.read(65536):
            pass
    finally:
        writer.close()
