"""A minimal X11 client, for what the desktop needs: the keyboard's mapping, and whether a window is responsive."""

import asyncio
import struct
from collections.abc import Callable

_LITTLE_ENDIAN = 0x6C
_COOKIE_NAME = b"MIT-MAGIC-COOKIE-1"
_ERROR, _REPLY = 0, 1
_GENERIC_EVENT = 35
_CONNECT_SECONDS = 10.0
"""Maximum time for the server to answer, in seconds."""


def authority_file(cookie: bytes) -> bytes:
    """Return the content of an Xauthority file with `cookie` for every display on any host."""
    any_host = 0xFFFF
    fields = b"".join(struct.pack(">H", len(each)) + each for each in (b"", b"", _COOKIE_NAME, cookie))
    return struct.pack(">H", any_host) + fields


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class XRefusal(OSError):
    """The X server answered a request with an error."""


class XConnection:
    """A connection to an X server. Create it with `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wrap a connection whose setup is done."""
        self.min_keycode = self.max_keycode = self.root = 0
        self.on_event: Callable[[bytes], None] = lambda _event: None
        """Called with each event."""
        self._reader = reader
        self._writer = writer
        self._sequence = 0
        self._replies: dict[int, asyncio.Future[bytes]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: str, cookie: bytes) -> "XConnection":
        """Connect to the server's unix socket at `path`.

        Raises:
            OSError: The server cannot be reached or refuses.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path)
                connection = cls(reader, writer)
                try:
                    await connection._set_up(cookie)
                except BaseException:
                    writer.close()
                    raise
        except EOFError:
            raise ConnectionResetError("the X server has closed the connection") from None
        connection._task = asyncio.create_task(connection._read(), name="X11 events")
        return connection

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._task is None or self._task.done()

    async def request(self, opcode: int, detail: int, body: bytes) -> bytes:
        """Send a request that has a reply and return the reply.

        Raises:
            OSError: The server refused, does not answer, or has closed the connection.
        """
        self.send(opcode, detail, body)
        future = self._replies[self._sequence & 0xFFFF] = asyncio.get_running_loop().create_future()
        if self.closed:
            raise ConnectionResetError("the X server has closed the connection")
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await future

    def send(self, opcode: int, detail: int, body: bytes) -> None:
        """Send a request without a reply. `body` is padded."""
        body = _padded(body)
        self._sequence += 1
        self._writer.write(struct.pack("<BBH", opcode, detail, 1 + len(body) // 4) + body)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        if self._task is not None:
            self._task.cancel()

    async def _set_up(self, cookie: bytes) -> None:
        head = struct.pack("<BxHHHH2x", _LITTLE_ENDIAN, 11, 0, len(_COOKIE_NAME), len(cookie))
        self._writer.write(head + _padded(_COOKIE_NAME) + _padded(cookie))
        status, length = struct.unpack("<B5xH", await self._reader.readexactly(8))
        body = await self._reader.readexactly(length * 4)
        if status != 1:
            raise ConnectionRefusedError("the X server refuses the cookie")
        vendor_length, formats = struct.unpack_from("<H", body, 16)[0], body[21]
        self.min_keycode, self.max_keycode = body[26], body[27]
        (self.root,) = struct.unpack_from("<I", body, 32 + len(_padded(bytes(vendor_length))) + 8 * formats)

    async def _read(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(32)
                kind, sequence, length = struct.unpack_from("<BxHI", head)
                if kind in (_REPLY, _GENERIC_EVENT):
                    head += await self._reader.readexactly(length * 4)
                if kind not in (_ERROR, _REPLY):
                    self.on_event(head)
                elif (future := self._replies.pop(sequence, None)) is not None and not future.done():
                    if kind == _REPLY:
                        future.set_result(head)
                    else:
                        future.set_exception(XRefusal(f"the X server refused with error {head[1]}"))
        except (OSError, EOFError):
            pass
        finally:
            for future in self._replies.values():
                if not future.done():
                    future.set_exception(ConnectionResetError("the X server has closed the connection"))
            self._writer.close()
