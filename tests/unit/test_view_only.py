"""RfbFilter and ViewOnlyViewer: which bytes of a viewer reach the desktop."""

import asyncio
import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import Forbidden
from app.interfaces.view_only import LONGEST, SLICE, RfbFilter, ViewOnlyViewer

GREETING = b"RFB 003.008\n" + b"\x01" + b"\x01"
PADDING = bytes(3)

u8, u16, u32 = st.integers(0, 2**8 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
i32 = st.integers(-(2**31), 2**31 - 1).filter(lambda encoding: encoding != -316)

ASKING = st.one_of(
    st.binary(min_size=19, max_size=19).map(lambda body: b"\x00" + body),
    st.lists(i32, max_size=1024).map(lambda each: struct.pack(f">BxH{len(each)}i", 2, len(each), *each)),
    st.binary(min_size=9, max_size=9).map(lambda body: b"\x03" + body),
    st.binary(min_size=9, max_size=9).map(lambda body: b"\x96" + body),
    st.binary(max_size=255).map(lambda body: b"\xf8" + bytes(7) + bytes([len(body)]) + body),
)
DOING = st.one_of(
    st.builds(lambda down, key: struct.pack(">BBxxI", 4, down, key), u8, u32),
    st.builds(lambda mask, x, y: struct.pack(">BBHH", 5, mask, x, y), u8, u16, u16),
    st.binary(max_size=300).map(lambda text: b"\x06" + PADDING + struct.pack(">i", len(text)) + text),
    st.binary(min_size=4, max_size=300).map(lambda text: b"\x06" + PADDING + struct.pack(">i", -len(text)) + text),
    st.builds(lambda version, code: bytes((250, 0, version, code)), u8, u8),
    st.binary(max_size=255).map(
        lambda all: b"\xfb" + bytes(5) + bytes((len(all) // 16, 0)) + all[: len(all) // 16 * 16]
    ),
    st.binary(max_size=99).map(lambda body: b"\xfd\x81" + struct.pack(">H", len(body)) + body),
    st.binary(max_size=99).map(lambda body: b"\xfd\x01" + struct.pack("<H", len(body)) + body),
    st.builds(lambda down, key, code: struct.pack(">BBHII", 255, 0, down, key, code), u16, u32, u32),
    st.sampled_from((b"\xff\x01\x00\x00", b"\xff\x01\x00\x01", b"\xff\x01\x00\x02" + b"\x04" * 6)),
    st.integers(1025, 3000).map(lambda count: struct.pack(">BxH", 2, count) + b"\x04" * 4 * count),
)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(each % (len(data) + 1) for each in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    st.lists(ASKING.map(lambda m: (m, True)) | DOING.map(lambda m: (m, False)), max_size=20), st.lists(u32, max_size=40)
)
def test_filter_passes_only_picture_requests_however_input_is_split(
    sent: list[tuple[bytes, bool]], at: list[int]
) -> None:
    rfb_filter = RfbFilter()
    data = GREETING + b"".join(message for message, _ in sent)
    passed = b"".join(rfb_filter.feed(piece) for piece in cut(data, at))
    assert passed == GREETING + b"".join(message for message, passes in sent if passes)


def test_filter_fed_byte_by_byte_passes_only_whole_messages() -> None:
    rfb_filter = RfbFilter()
    for byte in GREETING:
        rfb_filter.feed(bytes([byte]))
    request = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800)
    assert [rfb_filter.feed(bytes([byte])) for byte in request] == [b""] * 9 + [request]


def message_types(passed_on: bytes) -> list[int]:
    """Return the types of the messages in `passed_on`. Fail unless it is a sequence of whole messages."""
    assert passed_on[:14] == GREETING[: len(passed_on)]
    rest, kinds = passed_on[14:], []
    while rest:
        match rest[0]:
            case 0:
                length = 20
            case 2:
                length = 4 + 4 * struct.unpack_from(">H", rest, 2)[0]
            case 3 | 150:
                length = 10
            case 248:
                length = 9 + rest[8]
            case kind:
                raise AssertionError(f"the desktop receives a message of type {kind}")
        assert len(rest) >= length
        kinds.append(rest[0])
        rest = rest[length:]
    return kinds


@given(st.lists(st.binary(max_size=40) | ASKING | DOING, max_size=12), st.lists(u32, max_size=20))
def test_filter_passes_only_whole_harmless_messages_for_random_input(sent: list[bytes], at: list[int]) -> None:
    rfb_filter, passed_on = RfbFilter(), bytearray()
    try:
        for piece in cut(GREETING + b"".join(sent), at):
            passed_on += rfb_filter.feed(piece)
    except Forbidden:
        pass
    message_types(bytes(passed_on))


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {0, 2, 3, 4, 5, 6, 150, 248, 250, 251, 253, 255}))
def test_unknown_message_type_raises_forbidden(kind: int) -> None:
    rfb_filter = RfbFilter()
    rfb_filter.feed(GREETING)
    with pytest.raises(Forbidden, match=f"watching only: .* type {kind} "):
        rfb_filter.feed(bytes([kind]))


@pytest.mark.parametrize("message", [b"\xff\x02\x00\x00", b"\xff\x01\x00\x03", b"\xff\xff\xff\xff"])
def test_unknown_qemu_message_raises_forbidden(message: bytes) -> None:
    rfb_filter = RfbFilter()
    rfb_filter.feed(GREETING)
    with pytest.raises(Forbidden):
        rfb_filter.feed(message)


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.005\n", b"RFB 004.001\n", b"\x04" * 12])
def test_unsupported_protocol_version_raises_forbidden(version: bytes) -> None:
    with pytest.raises(Forbidden, match=r"3\.7 or 3\.8"):
        RfbFilter().feed(version)


@pytest.mark.parametrize("kind", [0, 2, 16, 19, 255])
def test_unsupported_security_type_raises_forbidden(kind: int) -> None:
    with pytest.raises(Forbidden, match="security"):
        RfbFilter().feed(b"RFB 003.008\n" + bytes([kind]))


def test_exclusive_access_is_replaced_by_shared_access() -> None:
    assert RfbFilter().feed(GREETING[:-1] + b"\x00") == GREETING


def test_extended_buttons_encoding_is_removed() -> None:
    rfb_filter = RfbFilter()
    rfb_filter.feed(GREETING)
    asked = struct.pack(">BxH5i", 2, 5, 7, -316, 0, -316, -224)
    assert rfb_filter.feed(asked) == struct.pack(">BxH3i", 2, 3, 7, 0, -224)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"\x06" + PADDING + struct.pack(">i", 2**31 - 1), 2**31 - 1),
        (b"\x06" + PADDING + struct.pack(">i", -(2**31)), 2**31),
        (b"\x02\x00\xff\xff", 4 * 65_535),
    ],
)
def test_dropped_message_is_not_stored_whatever_its_length(head: bytes, size: int) -> None:
    rfb_filter = RfbFilter()
    rfb_filter.feed(GREETING)
    assert rfb_filter.feed(head) == b""
    piece, left = bytes([4]) * min(size, 1 << 20), size
    while left > 0:
        assert rfb_filter.feed(piece[:left]) == b""
        assert len(rfb_filter._kept) == 0
        left -= len(piece)
        if size > 1 << 26 and left < size - (1 << 26):
            return  # almost all of it
    request = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800)
    assert rfb_filter.feed(request) == request


@given(st.lists(st.binary(max_size=SLICE), max_size=5))
def test_stored_bytes_stay_bounded(pieces: list[bytes]) -> None:
    rfb_filter = RfbFilter()
    rfb_filter.feed(GREETING)
    try:
        for piece in pieces:
            rfb_filter.feed(piece)
            assert len(rfb_filter._kept) <= LONGEST
    except Forbidden:
        pass


class Talker:
    """A `Viewer` that sends `messages`, then leaves."""

    def __init__(self, *messages: bytes) -> None:
        self._messages = list(messages)
        self.shown: list[bytes] = []

    async def receive(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    async def send(self, data: bytes) -> bool:
        self.shown.append(data)
        return True


async def test_filtering_large_input_lets_other_tasks_run() -> None:
    request = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800)
    typing = struct.pack(">BBHH", 5, 1, 2, 3) * 100_000
    viewer = ViewOnlyViewer(Talker(GREETING, typing, typing + request))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(take_turns())
    assert await viewer.receive() == GREETING
    assert await viewer.receive() == request
    assert turns > len(typing) // SLICE
    assert await viewer.receive() is None
    other.cancel()


async def test_bytes_from_the_desktop_pass_unchanged() -> None:
    talker = Talker()
    assert await ViewOnlyViewer(talker).send(b"\x00pixels")
    assert talker.shown == [b"\x00pixels"]
