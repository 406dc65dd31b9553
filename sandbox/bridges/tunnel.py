"""`WS /cdp/devtools/…`: a driver's bytes to Chromium and back, its WebSocket frames untouched."""

import asyncio

from sandbox.bridges.inner import Inner
from sandbox.bridges.upgrade import Handshake

_PASSED_ON = ("upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol")
"""Not `sec-websocket-extensions`, so that nothing is compressed; not `origin`, which Chromium would refuse; not the
token."""


class Tunnel:
    """One driver's connection to DevTools. After the handshake neither side's bytes are looked at."""

    watched = False
    """A driver stays connected between two actions, for longer than an unused sandbox is to live."""

    def __init__(self, viewer: asyncio.Transport, handshake: Handshake, target: str) -> None:
        """`target` is the path to ask Chromium for."""
        self._viewer = viewer
        self._handshake = handshake
        self._target = target
        self._host = ""
        self._lost = False
        self._inner = Inner(viewer, made=self._ask, lost=self._chromium_lost, framed=False)

    async def open(self, port: int) -> None:
        """Connects to the DevTools on loopback; Chromium itself answers the handshake. Raises OSError."""
        self._host = f"127.0.0.1:{port}"
        await asyncio.get_running_loop().create_connection(lambda: self._inner, "127.0.0.1", port)
        if self._lost:
            self._inner.close()

    def from_viewer(self, data: bytes) -> None:
        """What the driver sent after its handshake."""
        self._inner.write(data)

    def hold(self) -> None:
        """The driver takes no more for now."""
        self._inner.hold()

    def go_on(self) -> None:
        """The driver takes more again."""
        self._inner.go_on()

    def leave(self) -> None:
        """The service ends."""
        self._viewer.close()

    def viewer_lost(self) -> None:
        """The driver's connection is gone."""
        self._lost = True
        self._inner.close()

    def _ask(self) -> None:
        lines = [f"GET {self._target} HTTP/1.1", f"Host: {self._host}"]
        headers = self._handshake.headers
        lines += [f"{name}: {headers[name]}" for name in _PASSED_ON if name in headers]
        self._inner.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def _chromium_lost(self) -> None:
        self._viewer.close()
