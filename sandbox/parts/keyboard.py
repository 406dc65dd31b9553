"""The desktop's keyboard: gives a key code to characters that its keyboard lacks, so that the VNC server can type them.

The VNC server types a character by pressing a key that produces it. The keyboard has few unused key codes, so they are
reused. A program translates a key code when it handles the press, with the mapping that it knows then. So two things
must not happen:

- A key code gets another character while a press of it is not handled. Before that, the window with the focus is
  pinged: its response shows that it has handled the presses that came before the ping.
- A key is pressed before the program knows its new character. GTK learns it on a connection of its own, whose order is
  independent of the presses, so the hidden window of that connection is pinged after each change.
"""

import asyncio
import itertools
import logging
import struct
from collections.abc import Awaitable, Callable, Iterable

from sandbox.parts.x11 import XConnection, XRefusal

_CHANGE_WINDOW_ATTRIBUTES, _QUERY_TREE, _INTERN_ATOM, _GET_PROPERTY, _SEND_EVENT, _GET_INPUT_FOCUS = (
    2,
    15,
    16,
    20,
    25,
    43,
)
_QUERY_EXTENSION, _CHANGE_MAPPING, _GET_MAPPING = 98, 100, 101
"""Opcodes of the core protocol."""
_XI_SELECT_EVENTS, _XI_QUERY_VERSION = 46, 47
"""Opcodes of the input extension."""
_CLIENT_MESSAGE, _GENERIC_EVENT = 33, 35
_RAW_KEY_PRESS, _RAW_KEY_RELEASE = 13, 14
_EVENT_MASK, _SUBSTRUCTURE_NOTIFY = 0x800, 0x80000
_ALL_MASTER_DEVICES = 1
_ATOM = 4
"""The type of a property that holds atoms."""
_RESPONSE_SECONDS = 1.0
"""Maximum time to wait for a window that does not respond, in seconds."""

CAPACITY = 6
"""Maximum number of characters to prepare at once. Keyboards have more unused key codes."""

log = logging.getLogger("sandbox")


def is_on_every_keyboard(keysym: int) -> bool:
    """Return whether `keysym` is an ASCII character or a key without a character, which every keyboard has."""
    return 0x20 <= keysym < 0x7F or 0xFF00 <= keysym <= 0xFFFF


class Keyboard:
    """The keyboard of one desktop, which all its viewers share."""

    def __init__(self, connect: Callable[[], Awaitable[XConnection]]) -> None:
        """Create the keyboard without connecting. `connect`: connects to the X server; may raise OSError."""
        self._connect = connect
        self._lock = asyncio.Lock()
        self._mapping: _Mapping | None = None

    async def prepare(self, keysyms: Iterable[int]) -> None:
        """Make sure that the keyboard has each of `keysyms`, at most `CAPACITY` of them, which are pressed next.

        Without success, the VNC server types what it can.
        """
        async with self._lock:
            try:
                if self._mapping is None or self._mapping.connection.closed:
                    self._mapping = await _Mapping.read(await self._connect())
                await self._mapping.add(keysyms)
            except OSError as error:
                log.warning("cannot give key codes to characters: %s", error)

    def close(self) -> None:
        """Close the connection to the X server."""
        if self._mapping is not None:
            self._mapping.connection.close()


class _Mapping:
    """Which key code produces which character, for the life of one connection."""

    def __init__(self, connection: XConnection) -> None:
        self.connection = connection
        self._fixed: set[int] = set()
        """Keysyms that the keyboard has by itself."""
        self._codes: dict[int, int] = {}
        """Key codes of added keysyms, the least recently used first."""
        self._unused: list[int] = []
        self._unhandled: set[int] = set()
        """Key codes that were pressed since the last ping, or will be."""
        self._expected: set[int] = set()
        """Key codes whose press the server has not handled."""
        self._changed = asyncio.Event()
        self._tokens = itertools.count(1)
        self._pings: set[int] = set()
        """Tokens of pings without a response."""
        self._protocols = self._ping_atom = 0

    @classmethod
    async def read(cls, connection: XConnection) -> "_Mapping":
        """Read the keyboard of the server.

        Raises:
            OSError: The server refused or has ended.
        """
        mapping = cls(connection)
        try:
            await mapping._read_keys()
            await mapping._select_events()
        except BaseException:
            connection.close()
            raise
        return mapping

    async def add(self, keysyms: Iterable[int]) -> None:
        """Give a key code to each of `keysyms` that has none.

        Raises:
            OSError: The server has ended.
        """
        wanted = [keysym for keysym in dict.fromkeys(keysyms) if keysym not in self._fixed]
        missing = [keysym for keysym in wanted if keysym not in self._codes]
        free = len(self._unused) + len(set(self._codes.values()) - self._unhandled)
        if len(missing) > free:
            await self._settle()
        for keysym in wanted:
            if keysym in self._codes:
                self._use(keysym, self._codes.pop(keysym))
        for keysym in missing:
            if code := self._free_code():
                self.connection.send(_CHANGE_MAPPING, 1, struct.pack("<BBxxI", code, 1, keysym))
                self._use(keysym, code)
        if missing:
            await self._ping(await self._hidden_windows())

    def _use(self, keysym: int, code: int) -> None:
        self._codes[keysym] = code
        self._unhandled.add(code)
        self._expected.add(code)

    def _free_code(self) -> int:
        """Return a key code that may get another character; 0 if there is none."""
        if self._unused:
            return self._unused.pop()
        keysym = next((keysym for keysym, code in self._codes.items() if code not in self._unhandled), None)
        return self._codes.pop(keysym) if keysym is not None else 0

    async def _settle(self) -> None:
        """Wait until the server and the window with the focus have handled all presses so far."""
        try:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                while self._expected:
                    await self._wait_for_event()
        except TimeoutError:
            pass  # a key that was already down, or whose viewer has left
        await self._ping([await self._focus()])
        self._expected.clear()
        self._unhandled.clear()

    async def _ping(self, windows: list[int]) -> None:
        """Wait until the programs of `windows` have handled the events that they were sent so far."""
        for window in windows:
            token = next(self._tokens)
            self._pings.add(token)
            head = struct.pack("<BBHII", _CLIENT_MESSAGE, 32, 0, window, self._protocols)
            event = head + struct.pack("<IIIII", self._ping_atom, token, window, 0, 0)
            self.connection.send(_SEND_EVENT, 0, struct.pack("<II", window, 0) + event)
        try:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                while self._pings:
                    await self._wait_for_event()
        except TimeoutError:
            log.info("a window of the desktop does not respond")
        self._pings.clear()

    async def _hidden_windows(self) -> list[int]:
        """Return the windows that respond to pings and were not made for a person."""
        reply = await self.connection.request(_QUERY_TREE, 0, struct.pack("<I", self.connection.root))
        (count,) = struct.unpack_from("<H", reply, 16)
        return [window for window in struct.unpack_from(f"<{count}I", reply, 32) if await self._responds(window)]

    async def _responds(self, window: int) -> bool:
        wanted = struct.pack("<IIIII", window, self._protocols, _ATOM, 0, 32)
        try:
            reply = await self.connection.request(_GET_PROPERTY, 0, wanted)
        except XRefusal:
            return False  # the window was closed in the meantime
        (count,) = struct.unpack_from("<I", reply, 16)
        return self._ping_atom in struct.unpack_from(f"<{count}I", reply, 32)

    async def _wait_for_event(self) -> None:
        self._changed.clear()
        await self._changed.wait()
        if self.connection.closed:
            raise ConnectionResetError("the X server has ended")

    async def _focus(self) -> int:
        return struct.unpack_from("<I", await self.connection.request(_GET_INPUT_FOCUS, 0, b""), 8)[0]

    async def _read_keys(self) -> None:
        first, count = self.connection.min_keycode, self.connection.max_keycode - self.connection.min_keycode + 1
        reply = await self.connection.request(_GET_MAPPING, 0, struct.pack("<BBxx", first, count))
        width = reply[1]
        keysyms = struct.unpack_from(f"<{width * count}I", reply, 32)
        self._fixed = set(keysyms)
        self._unused = [first + at for at in range(count) if not any(keysyms[at * width : (at + 1) * width])]

    async def _select_events(self) -> None:
        self._protocols, self._ping_atom = await self._atom(b"WM_PROTOCOLS"), await self._atom(b"_NET_WM_PING")
        name = b"XInputExtension"
        reply = await self.connection.request(_QUERY_EXTENSION, 0, struct.pack("<Hxx", len(name)) + name)
        input_extension, root = reply[9], self.connection.root
        await self.connection.request(input_extension, _XI_QUERY_VERSION, struct.pack("<HH", 2, 2))
        mask = 1 << _RAW_KEY_PRESS | 1 << _RAW_KEY_RELEASE
        selection = struct.pack("<IHxxHHI", root, 1, _ALL_MASTER_DEVICES, 1, mask)
        self.connection.send(input_extension, _XI_SELECT_EVENTS, selection)
        # Windows answer a ping with a message to the root window.
        attributes = struct.pack("<III", root, _EVENT_MASK, _SUBSTRUCTURE_NOTIFY)
        self.connection.send(_CHANGE_WINDOW_ATTRIBUTES, 0, attributes)
        self.connection.on_event = self._on_event
        await self._focus()

    async def _atom(self, name: bytes) -> int:
        reply = await self.connection.request(_INTERN_ATOM, 0, struct.pack("<Hxx", len(name)) + name)
        return struct.unpack_from("<I", reply, 8)[0]

    def _on_event(self, event: bytes) -> None:
        kind = event[0] & 0x7F  # the highest bit marks events that a program has sent
        if kind == _GENERIC_EVENT and struct.unpack_from("<H", event, 8)[0] in (_RAW_KEY_PRESS, _RAW_KEY_RELEASE):
            self._expected.discard(struct.unpack_from("<I", event, 16)[0])
        elif kind == _CLIENT_MESSAGE and struct.unpack_from("<I", event, 12)[0] == self._ping_atom:
            self._pings.discard(struct.unpack_from("<I", event, 16)[0])
        else:
            return
        self._changed.set()
