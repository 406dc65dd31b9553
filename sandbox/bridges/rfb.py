"""Finds key presses in what a viewer sends (RFB 3.3 to 3.8, RFC 6143, and the extensions of TigerVNC and QEMU)."""

from collections.abc import Callable, Mapping

_VERSION_BYTES = 12
_OLDEST_VERSION = b"RFB 003.003\n"
_KEY_EVENT, _KEY_EVENT_BYTES = 4, 8
_QEMU, _QEMU_KEY_EVENT_BYTES = 255, 12


def _cut_text_length(head: bytes) -> int:
    # The length is negative in the extended form.
    return 8 + abs(int.from_bytes(head[4:8], "big", signed=True))


def _qemu_length(head: bytes) -> int:
    if head[1] == 0:
        return _QEMU_KEY_EVENT_BYTES
    return 10 if head[1:4] == b"\x01\x00\x02" else 4


_LENGTHS: Mapping[int, tuple[int, Callable[[bytes], int]]] = {
    0: (1, lambda _: 20),  # SetPixelFormat
    2: (4, lambda head: 4 + 4 * int.from_bytes(head[2:4], "big")),  # SetEncodings
    3: (1, lambda _: 10),  # FramebufferUpdateRequest
    _KEY_EVENT: (1, lambda _: _KEY_EVENT_BYTES),
    5: (1, lambda _: 6),  # PointerEvent
    6: (8, _cut_text_length),  # ClientCutText
    150: (1, lambda _: 10),  # EnableContinuousUpdates
    248: (9, lambda head: 9 + head[8]),  # ClientFence
    251: (8, lambda head: 8 + 16 * head[6]),  # SetDesktopSize
    _QEMU: (4, _qemu_length),
}
"""For each message type: the number of bytes that determine its length, and a function that returns the length."""


class KeyPresses:
    """Follows a viewer's messages, part by part. After a message of unknown length, it finds nothing more."""

    def __init__(self) -> None:
        self._greeting = [_VERSION_BYTES]
        """Lengths of the parts of the greeting that are still to come."""
        self._kept = bytearray()
        """Start of an incomplete message: at most what determines its length, or a whole key event."""
        self._skipping = 0
        """Number of bytes of a message that are still to come and do not matter."""
        self._lost = False

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        """Return the key presses that `data` completes: the position in `data` after each, and its keysym."""
        found: list[tuple[int, int]] = []
        at = 0
        while at < len(data) and not self._lost:
            if self._skipping:
                step = min(self._skipping, len(data) - at)
                self._skipping -= step
                at += step
                continue
            wanted = self._wanted()
            step = min(wanted - len(self._kept), len(data) - at)
            self._kept += data[at : at + step]
            at += step
            if len(self._kept) == wanted:
                self._take(at, found)
        return found

    def _wanted(self) -> int:
        """Return how many bytes of the message to keep before it is looked at again; 0 for an unknown message."""
        if self._greeting:
            return self._greeting[0]
        if not self._kept:
            return 1
        if self._kept[0] == _KEY_EVENT:
            return _KEY_EVENT_BYTES
        if self._kept[0] == _QEMU:
            return 4 if len(self._kept) < 4 or self._kept[1] != 0 else _QEMU_KEY_EVENT_BYTES
        return _LENGTHS[self._kept[0]][0]

    def _take(self, at: int, found: list[tuple[int, int]]) -> None:
        """Look at the kept bytes, which are as many as wanted, and drop them once they were understood."""
        head = bytes(self._kept)
        if self._greeting:
            del self._greeting[0]
            if len(head) == _VERSION_BYTES:
                # The type of security, which 3.3 lacks, and whether to share.
                self._greeting = [1] if head == _OLDEST_VERSION else [1, 1]
            self._kept.clear()
            return
        known = _LENGTHS.get(head[0])
        if known is None:
            self._lost = True
            self._kept.clear()
            return
        if len(head) < self._wanted():
            return
        length = known[1](head)
        if head[0] == _KEY_EVENT and head[1]:
            found.append((at, int.from_bytes(head[4:8], "big")))
        elif head[0] == _QEMU and length == len(head) == _QEMU_KEY_EVENT_BYTES and head[2:4] != b"\0\0":
            found.append((at, int.from_bytes(head[4:8], "big")))
        self._skipping = length - len(head)
        self._kept.clear()
