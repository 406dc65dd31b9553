"""A viewer who only watches: of what it says to the desktop, only what asks for pictures gets through.

The protocol is RFB 3.7 or 3.8 (RFC 6143, and the extensions of TigerVNC, noVNC and QEMU). What passes is sent on as
whole messages whose lengths cannot be read in two ways: the desktop hears a sequence of those and nothing else, however
the viewer cuts, joins or forges what it sends. What is dropped is never kept, however long it says that it is.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from app.application.services.desktop import Viewer
from app.domain.errors import Forbidden

SLICE = 16 * 1024
"""Bytes looked at before others get their turn: about a millisecond when they are all small messages."""

LONGEST = 4 + 4 * 1024
"""Bytes of a message that passes: a SetEncodings of 1024 encodings, of which viewers send some thirty. A longer one is
dropped."""

_ONLY_WATCHING = "the ticket is for watching only"

_VERSIONS = (b"RFB 003.007\n", b"RFB 003.008\n")
"""In 3.3 the desktop chooses how the viewer shows who it is, which is not seen from here."""

_NO_LOGIN = 1
"""The security type `None`, after which nothing more is said about who the viewer is."""

_SET_ENCODINGS = 2
_EXTENDED_BUTTONS = (-316).to_bytes(4, "big", signed=True)
"""A desktop that is asked for this may be told of the pointer in messages of two lengths."""

_PASSED = frozenset({0, _SET_ENCODINGS, 3, 150, 248})
"""SetPixelFormat, SetEncodings, FramebufferUpdateRequest, EnableContinuousUpdates, ClientFence."""


def _cut_text(head: bytes) -> int:
    # Negative in the extended form.
    return 8 + abs(int.from_bytes(head[4:8], "big", signed=True))


def _input_devices(head: bytes) -> int:
    return 4 + int.from_bytes(head[2:4], "big" if head[1] & 0x80 else "little")


def _qemu(head: bytes) -> int:
    match head[1], int.from_bytes(head[2:4], "big"):
        case 0, _:  # a key
            return 12
        case 1, 0 | 1:  # sound on, off
            return 4
        case 1, 2:  # how the sound should be
            return 10
        case _:
            raise Forbidden(f"{_ONLY_WATCHING}: messages of the unknown type 255.{head[1]} are not let through")


_LENGTHS: Mapping[int, tuple[int, Callable[[bytes], int]]] = {
    0: (1, lambda head: 20),  # SetPixelFormat
    _SET_ENCODINGS: (4, lambda head: 4 + 4 * int.from_bytes(head[2:4], "big")),
    3: (1, lambda head: 10),  # FramebufferUpdateRequest
    4: (1, lambda head: 8),  # KeyEvent
    5: (1, lambda head: 6),  # PointerEvent
    6: (8, _cut_text),  # ClientCutText
    150: (1, lambda head: 10),  # EnableContinuousUpdates
    248: (9, lambda head: 9 + head[8]),  # ClientFence
    250: (1, lambda head: 4),  # xvp: shutdown, reboot, reset
    251: (8, lambda head: 8 + 16 * head[6]),  # SetDesktopSize
    253: (4, _input_devices),  # gii
    255: (4, _qemu),
}
"""By the type of a message: how many bytes of it tell its length, and how."""


class OnlyWatching:
    """A `Viewer` (see there): what it is shown `viewer` is shown, what it says is what may pass of what `viewer` says.

    Raises:
        Forbidden: the viewer says something unknown.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._sieve = Sieve()
        self._unread = memoryview(b"")

    async def receive(self) -> bytes | None:
        """See `Viewer.receive`."""
        while True:
            if not self._unread:
                said = await self._viewer.receive()
                if said is None:
                    return None
                self._unread = memoryview(said)
            piece, self._unread = self._unread[:SLICE], self._unread[SLICE:]
            if passed := self._sieve.sift(piece):
                return passed
            await asyncio.sleep(0)

    async def send(self, data: bytes) -> bool:
        """See `Viewer.send`."""
        return await self._viewer.send(data)


class Sieve:
    """What a viewer says, piece by piece, without that which would change something."""

    def __init__(self) -> None:
        self._greeted = 0
        self._kept = bytearray()
        """The beginning of a message that is not whole yet: at most the longest that passes."""
        self._dropping = 0
        """Bytes still to come of a message that does not pass."""

    def sift(self, data: bytes | memoryview) -> bytes:
        """What passes, now that `data` has come as well: whole messages, none when there is nothing to pass yet.

        Raises:
            Forbidden: something unknown was said, so that nobody can tell where it ends; sift nothing more.
        """
        dropped = min(self._dropping, len(data))
        self._dropping -= dropped
        self._kept += data[dropped:]
        passed = bytearray()
        at = 0
        while at < len(self._kept) and (length := self._look(at, passed)):
            at += length
        self._dropping += max(0, at - len(self._kept))
        del self._kept[:at]
        return bytes(passed)

    def _look(self, at: int, passed: bytearray) -> int:
        """Look at the message that begins at `at`, and let it pass or not; answers its length, which for one that does
        not pass may be more than there is. 0: too little of it has come."""
        if self._greeted < len(_GREETING):
            return self._greet(at, passed)
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
            passed += _narrowed(message) if kind == _SET_ENCODINGS else message
        return length

    def _greet(self, at: int, passed: bytearray) -> int:
        size, answer = _GREETING[self._greeted]
        said = bytes(self._kept[at : at + size])
        if len(said) < size:
            return 0
        passed += answer(said)
        self._greeted += 1
        return size


def _version(said: bytes) -> bytes:
    if said not in _VERSIONS:
        raise Forbidden(f"{_ONLY_WATCHING}: the protocol must be RFB 3.7 or 3.8")
    return said


def _security(said: bytes) -> bytes:
    if said[0] != _NO_LOGIN:
        raise Forbidden(f"{_ONLY_WATCHING}: the security type must be 1 (none)")
    return said


def _shared(_said: bytes) -> bytes:
    # Who only watches does not send the other viewers away.
    return b"\x01"


_GREETING: Sequence[tuple[int, Callable[[bytes], bytes]]] = ((12, _version), (1, _security), (1, _shared))
"""What is said before the first message: how many bytes each is, and what passes for it."""


def _narrowed(message: bytes) -> bytes:
    """A SetEncodings without what would make the viewer's messages ambiguous; nothing else is changed."""
    encodings = [message[at : at + 4] for at in range(4, len(message), 4)]
    if _EXTENDED_BUTTONS not in encodings:
        return message
    left = [encoding for encoding in encodings if encoding != _EXTENDED_BUTTONS]
    return message[:2] + len(left).to_bytes(2, "big") + b"".join(left)
