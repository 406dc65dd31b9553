"""The parsers of a viewer's RFB messages, against a parser that reads everything at once."""

import struct
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import Forbidden
from app.interfaces.view_only import LONGEST, RfbFilter
from sandbox.bridges.vnc import KeyPresses
from tests.support.fuzzing import examples

GREETINGS = st.sampled_from((b"RFB 003.008\n\x01\x01", b"RFB 003.007\n\x01\x00", b"RFB 003.003\n\x01")) | st.binary(
    max_size=16
)
TYPES = (0, 2, 3, 4, 5, 6, 150, 248, 250, 251, 253, 255)
LENGTHS = st.sampled_from((0, 1, 4, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF)) | st.integers(0, 2**32 - 1)


def _message(kind: int, length: int, body: bytes) -> bytes:
    """Return something like a message: a type, plausible fields, and any length in the place for one."""
    match kind:
        case 2 | 253:
            return struct.pack(">BBH", kind, body[0] if body else 0, length & 0xFFFF) + body
        case 6:
            return struct.pack(">BxxxI", kind, length) + body
        case 255:
            return struct.pack(">BBH", kind, length & 3, length >> 2 & 3) + body
        case _:
            return bytes([kind]) + body


MESSAGES = st.builds(_message, st.sampled_from(TYPES), LENGTHS, st.binary(max_size=40)) | st.binary(max_size=30)
STREAMS = st.builds(lambda greeting, rest: greeting + b"".join(rest), GREETINGS, st.lists(MESSAGES, max_size=15))
CUTS = st.lists(st.integers(0, 400), max_size=30)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


class _Ended(Exception):
    """The stream ends within a message."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise _Ended
        self.at += count
        return self.data[self.at - count : self.at]

    def peek(self, count: int) -> bytes:
        found = self.take(count)
        self.at -= count
        return found

    def read_message(self) -> bytes | None:
        """Return the next message of a viewer; None if its type is unknown, so that its end is too."""
        kind = self.peek(1)[0]
        fixed = {0: 20, 3: 10, 4: 8, 5: 6, 150: 10, 250: 4}
        if kind in fixed:
            return self.take(fixed[kind])
        match kind:
            case 2:
                length = 4 + 4 * struct.unpack(">xxH", self.peek(4))[0]
            case 6:
                length = 8 + abs(struct.unpack(">4xi", self.peek(8))[0])
            case 248:
                length = 9 + self.peek(9)[8]
            case 251:
                length = 8 + 16 * self.peek(8)[6]
            case 253:
                head = self.peek(4)
                length = 4 + struct.unpack(">H" if head[1] >= 128 else "<H", head[2:])[0]
            case 255:
                length = {0: 12, 1: {0: 4, 1: 4, 2: 10}}.get(self.peek(4)[1], 0)
                if isinstance(length, dict):
                    length = length.get(struct.unpack(">xxH", self.peek(4))[0], 0)
            case _:
                length = 0
        return self.take(length) if length else None


def permitted(data: bytes) -> tuple[bytes, bool]:
    """Return what of `data` may reach the desktop, and whether the viewer must be disconnected."""
    reader, passed = _Reader(data), bytearray()
    try:
        version = reader.take(12)
        if version not in (b"RFB 003.007\n", b"RFB 003.008\n"):
            return bytes(passed), True
        passed += version
        if reader.take(1) != b"\x01":
            return bytes(passed), True
        passed += b"\x01"
        reader.take(1)
        passed += b"\x01"
        while True:
            message = reader.read_message()
            if message is None:
                return bytes(passed), True
            if message[0] == 2 and len(message) <= LONGEST:
                kept = [each for (each,) in struct.iter_unpack(">i", message[4:]) if each != -316]
                passed += message[:2] + struct.pack(f">H{len(kept)}i", len(kept), *kept)
            elif message[0] in (0, 3, 150, 248):
                passed += message
    except _Ended:
        return bytes(passed), False


@examples(400, 50_000)
@given(STREAMS, CUTS)
def test_filter_passes_what_a_separate_parser_permits_however_input_is_cut(stream: bytes, places: list[int]) -> None:
    rfb_filter, passed, refused = RfbFilter(), bytearray(), False
    try:
        for piece in cut(stream, places):
            passed += rfb_filter.feed(piece)
            assert len(rfb_filter._kept) <= LONGEST
    except Forbidden:
        refused = True
    expected, is_bad = permitted(stream)
    assert refused == is_bad
    # What came in the same piece before a refused message is not passed on either.
    assert expected.startswith(passed) if refused else passed == expected


def presses(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the position after each key press in a stream, and its keysym."""
    reader = _Reader(data)
    try:
        oldest = reader.take(12) == b"RFB 003.003\n"
        reader.take(1 if oldest else 2)
        while True:
            kind = reader.peek(1)[0]
            if kind == 255 and reader.peek(4)[1] == 1:
                # The filter refuses what is unknown here, the keyboard takes it for a short message.
                reader.take(10 if reader.peek(4)[1:] == b"\x01\x00\x02" else 4)
                continue
            if kind == 255 and reader.peek(4)[1] > 1:
                reader.take(4)
                continue
            if kind in (250, 253):
                return
            message = reader.read_message()
            if message is None:
                return
            if message[0] == 4 and message[1]:
                yield reader.at, struct.unpack(">4xI", message)[0]
            elif message[0] == 255 and message[2:4] != b"\0\0":
                yield reader.at, struct.unpack(">4xI4x", message)[0]
    except _Ended:
        return


@examples(400, 50_000)
@given(STREAMS, CUTS)
def test_key_presses_are_those_of_a_separate_parser_however_input_is_cut(stream: bytes, places: list[int]) -> None:
    keys, found, before = KeyPresses(), list[tuple[int, int]](), 0
    for piece in cut(stream, places):
        found += [(before + at, keysym) for at, keysym in keys.feed(piece)]
        before += len(piece)
        assert len(keys._kept) <= 12
    assert found == list(presses(stream))
