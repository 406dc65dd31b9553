"""Viewers that only watch: of their RFB messages, only requests for pictures reach the desktop.

The protocol is RFB 3.7 or 3.8 (RFC 6143, and the extensions of TigerVNC, noVNC and QEMU). Only whole messages whose
length is unambiguous are passed on, so the desktop receives nothing else, however the viewer cuts, joins or forges what
it sends. Dropped messages are not stored, whatever length they declare.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from app.application.services.desktop import Viewer
from app.domain.errors import Forbidden

SLICE = 16 * 1024
"""Number of bytes to filter before other tasks run: about a millisecond if all messages are small."""

LONGEST = 4 + 4 * 1024
"""Maximum length of a message that is passed on, in bytes; a longer one is dropped.

This is a SetEncodings message with 1024 encodings; viewers send about thirty.
"""

_ONLY_WATCHING = "the ticket is for watching only"

_VERSIONS = (b"RFB 003.007\n", b"RFB 003.008\n")
"""Versions that are allowed. In 3.3 the desktop alone chooses the security type, so the filter would not see it."""

_NO_LOGIN = 1
"""The security type `None`, which needs no further messages."""

_SET_ENCODINGS = 2

_EXTENDED_BUTTONS = (-316).to_bytes(4, "big", signed=True)
"""An encoding after which pointer events may have two lengths."""

_PASSED = frozenset({0, _SET_ENCODINGS, 3, 150, 248})
"""Types of messages that are passed on.

SetPixelFormat, SetEncodings, FramebufferUpdateRequest, EnableContinuousUpdates, ClientFence.
"""


def _cut_text_length(head: bytes) -> int:
    # The length is negative in the extended form.
    return 8 + abs(int.from_bytes(head[4:8], "big", signed=True))


def _input_device_length(head: bytes) -> int:
    return 4 + int.from_bytes(head[2:4], "big" if head[1] & 0x80 else "little")


def _qemu_length(head: bytes) -> int:
    match head[1], int.from_bytes(head[2:4], "big"):
        case 0, _:  # a key
            return 12
        case 1, 0 | 1:  # sound on, off
            return 4
        case 1, 2:  # sound format
            return 10
        case _:
            raise Forbidden(f"{_ONLY_WATCHING}: messages of the unknown type 255.{head[1]} are not let through")


_LENGTHS: Mapping[int, tuple[int, Callable[[bytes], int]]] = {
    0: (1, lambda head: 20),  # SetPixelFormat
    _SET_ENCODINGS: (4, lambda head: 4 + 4 * int.from_bytes(head[2:4], "big")),
    3: (1, lambda head: 10),  # FramebufferUpdateRequest
    4: (1, lambda head: 8),  # KeyEvent
    5: (1, lambda head: 6),  # PointerEvent
    6: (8, _cut_text_length),  # ClientCutText
    150: (1, lambda head: 10),  # EnableContinuousUpdates
    248: (9, lambda head: 9 + head[8]),  # ClientFence
    250: (1, lambda head: 4),  # xvp: shutdown, reboot, reset
    251: (8, lambda head: 8 + 16 * head[6]),  # SetDesktopSize
    253: (4, _input_device_length),  # gii
    255: (4, _qemu_length),
}
"""For each message type: the number of bytes that determine its length, and a function that returns the length."""


class ViewOnlyViewer:
    """A `Viewer` that passes everything to `viewer`, and only permitted messages from it.

    Raises:
        Forbidden: The viewer sent a message of an unknown type.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._filter = RfbFilter()
        self._unread = memoryview(b"")

    async def receive(self) -> bytes | None:
        """Implement `Viewer.receive`."""
        while True:
            if not self._unread:
                data = await self._viewer.receive()
                if data is None:
                    return None
                self._unread = memoryview(data)
            part, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            if passed := self._filter.feed(part):
                return passed
            await asyncio.sleep(0)

    async def send(self, data: bytes) -> bool:
        """Implement `Viewer.send`."""
        return await self._viewer.send(data)


class RfbFilter:
    """Filter the bytes of a viewer, part by part, down to the messages that change nothing on the desktop."""

    def __init__(self) -> None:
        self._greeted = 0
        self._kept = bytearray()
        """Start of an incomplete message, at most as long as the longest that is passed on."""
        self._dropping = 0
        """Number of bytes still to come of a message that is dropped."""

    def feed(self, data: bytes | memoryview) -> bytes:
        """Return the messages to pass on after `data` has arrived; only whole ones, and possibly none.

        Raises:
            Forbidden: The type of a message is unknown, so its end is unknown too. Do not feed the filter again.
        """
        dropped = min(self._dropping, len(data))
        self._dropping -= dropped
        self._kept += data[dropped:]
        passed = bytearray()
        at = 0
        while at < len(self._kept) and (length := self._filter_message(at, passed)):
            at += length
        self._dropping += max(0, at - len(self._kept))
        del self._kept[:at]
        return bytes(passed)

    def _filter_message(self, at: int, passed: bytearray) -> int:
        """Append the message that starts at `at` to `passed` if it is permitted.

        Returns:
            The length of the message, or 0 if more of it is needed. A dropped message may be longer than what has
            arrived of it.
        """
        if self._greeted < len(_GREETING):
            return self._filter_greeting(at, passed)
        kind = self._kept[at]
        if kind not in _LENGTHS:
            raise Forbidden(f"{_ONLY_WATCHING}: messages of the unknown type {kind} are not let through")
        enough, length_of = _LENGTHS[kind]
        head = bytes(self._kept[at : at + enough])
        if len(head) < enough:
            return 0
        length = length_of(head)
        if kind in _PASSED and length <= LONGEST:
            message = bytes(self._kept[at : at + length])
            if len(message) < length:
                return 0
            passed += _without_extended_buttons(message) if kind == _SET_ENCODINGS else message
        return length

    def _filter_greeting(self, at: int, passed: bytearray) -> int:
        size, replace = _GREETING[self._greeted]
        received = bytes(self._kept[at : at + size])
        if len(received) < size:
            return 0
        passed += replace(received)
        self._greeted += 1
        return size


def _check_version(received: bytes) -> bytes:
    if received not in _VERSIONS:
        raise Forbidden(f"{_ONLY_WATCHING}: the protocol must be RFB 3.7 or 3.8")
    return received


def _check_security(received: bytes) -> bytes:
    if received[0] != _NO_LOGIN:
        raise Forbidden(f"{_ONLY_WATCHING}: the security type must be 1 (none)")
    return received


def _always_shared(_received: bytes) -> bytes:
    # A viewer that only watches must not disconnect the others.
    return b"\x01"


_GREETING: Sequence[tuple[int, Callable[[bytes], bytes]]] = (
    (12, _check_version),
    (1, _check_security),
    (1, _always_shared),
)
"""The parts of a viewer's greeting: the length of each, and a function that returns what is passed on for it."""


def _without_extended_buttons(message: bytes) -> bytes:
    """Return a SetEncodings message without the encoding that would make pointer events ambiguous."""
    encodings = [message[at : at + 4] for at in range(4, len(message), 4)]
    if _EXTENDED_BUTTONS not in encodings:
        return message
    left = [encoding for encoding in encodings if encoding != _EXTENDED_BUTTONS]
    return message[:2] + len(left).to_bytes(2, "big") + b"".join(left)
