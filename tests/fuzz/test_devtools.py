"""The DevTools routes between one Chromium and many drivers, when either side sends anything."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.bridges.cdp import CdpBridge
from sandbox.bridges.websocket import Handshake
from sandbox.parts.browser import DevToolsPipe
from sandbox.parts.devtools import Attachment, DevTools, DevToolsError
from tests.support.fuzzing import examples

DRIVERS = 3
ROOTS = [f"{number:032X}" for number in range(DRIVERS)]
"""The session of each driver."""
CHILDREN = [f"C{number:031X}" for number in range(2)]
"""Sessions that Chromium may attach to any driver."""

SESSIONS = st.sampled_from([*ROOTS, *CHILDREN, "", "none", "None", 'a"b', "x" * 65, "\ud800"])
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | SESSIONS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
IDS = st.integers(-2, 12) | st.sampled_from((0, 2**31, 2**63, 10**400)) | ODD
METHODS = (
    st.sampled_from(
        (
            "Target.attachedToTarget",
            "Target.detachedFromTarget",
            "Target.attachToTarget",
            "Browser.setDownloadBehavior",
            "Browser.close",
            "X.y",
        )
    )
    | ODD
)
FIELDS = {
    "id": IDS,
    "method": METHODS,
    "params": ODD
    | st.fixed_dictionaries({}, optional={"sessionId": SESSIONS | ODD, "downloadPath": ODD, "targetId": ODD}),
    "result": ODD | st.fixed_dictionaries({}, optional={"sessionId": SESSIONS | ODD}),
    "error": ODD,
    "sessionId": SESSIONS | ODD,
}


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Return an object like a message, with any fields in any order, some of them twice."""
    names = draw(st.lists(st.sampled_from(tuple(FIELDS)), max_size=6))
    gap = draw(st.sampled_from((",", ", ", ",\n ")))
    pairs = [f"{json.dumps(name)}:{json.dumps(draw(FIELDS[name]))}" for name in names]
    return f"{{{gap.join(pairs)}}}".encode()


TAILS = st.builds(lambda session: f',"sessionId":"{session}"}}'.encode(), st.sampled_from([*ROOTS, *CHILDREN]))
MESSAGES = st.one_of(
    objects(),
    # What ends like a message of a session, but need not be one.
    st.builds(lambda start, gap, end: start + gap + end, objects(), st.sampled_from((b"", b"//", b"/*", b"\0")), TAILS),
    st.builds(lambda start, end: start + end, st.binary(max_size=20), TAILS),
    st.binary(max_size=40),
    st.builds(lambda message, size: message[:size], objects(), st.integers(0, 100)),
)


@dataclass(eq=False)
class Recorder:
    """A driver that keeps what it receives."""

    received: list[bytes] = field(default_factory=list)
    closed: str = ""
    paused: bool = False

    def deliver(self, message: bytes | bytearray) -> None:
        self.received.append(bytes(message))

    def close(self, reason: str) -> None:
        self.closed = reason

    def pause_driver(self) -> None:
        self.paused = True

    def resume_driver(self) -> None:
        self.paused = False


class Routes:
    """DevTools with `DRIVERS` drivers, and a record of what Chromium receives."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.pipe = DevToolsPipe()
        self.devtools = DevTools(self.sent.append)
        self.pipe.devtools = self.devtools
        self.drivers: list[tuple[Recorder, Attachment]] = []

    async def open(self) -> None:
        for root in ROOTS:
            recorder = Recorder()
            attaching = asyncio.create_task(self.devtools.attach(recorder))
            await asyncio.sleep(0)
            call = json.loads(self.sent[-1][:-1])
            self.say(json.dumps({"id": call["id"], "result": {"sessionId": root}}).encode())
            self.drivers.append((recorder, await attaching))
        self.sent.clear()

    def say(self, message: bytes, *, cuts: int = 1_000) -> None:
        """Let Chromium write a message to its pipe."""
        data = message.replace(b"\0", b"") + b"\0"
        for at in range(0, len(data), cuts):
            piece = data[at : at + cuts]
            self.pipe.get_buffer(0)[: len(piece)] = piece
            self.pipe.buffer_updated(len(piece))


def run(scenario: Callable[[Routes], None]) -> None:
    async def main() -> None:
        routes = Routes()
        await routes.open()
        scenario(routes)
        await asyncio.sleep(0)

    asyncio.run(main())


def as_chromium_reads(message: bytes) -> dict[str, Any]:
    """Return a message as Chromium parses it: of keys that are there twice, the last counts."""
    assert message.endswith(b"\0")
    assert message.count(b"\0") == 1
    # Strict: Chromium also skips comments, so what is no JSON to us may be a message to it.
    found = json.loads(message[:-1], parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


@examples(120, 20_000)
@given(st.lists(st.tuples(st.integers(0, DRIVERS - 1), MESSAGES), max_size=8))
def test_messages_of_a_driver_reach_chromium_only_in_its_own_session(sent: list[tuple[int, bytes]]) -> None:
    def scenario(routes: Routes) -> None:
        for number, message in sent:
            recorder, attachment = routes.drivers[number]
            before, received = len(routes.sent), len(recorder.received)
            routes.devtools.send(attachment, message)
            forwarded = routes.sent[before:]
            assert len(forwarded) + len(recorder.received) - received == 1, "neither forwarded nor refused"
            for each in forwarded:
                assert as_chromium_reads(each)["sessionId"] == ROOTS[number]
            for each in recorder.received[received:]:
                assert "error" in json.loads(each)
        for recorder, _ in routes.drivers:
            assert not recorder.closed

    run(scenario)


@examples(120, 20_000)
@given(st.lists(MESSAGES, max_size=8), st.integers(1, 60))
def test_messages_of_chromium_reach_only_the_driver_of_their_session(said: list[bytes], cuts: int) -> None:
    def scenario(routes: Routes) -> None:
        roots = [attachment for _, attachment in routes.drivers]
        for message in said:
            routes.say(message, cuts=cuts)
        for root, attachment in zip(ROOTS, roots, strict=True):
            assert routes.devtools._owners[root] is attachment, "a session was given to another driver"
            assert not attachment.sessions & {*ROOTS}
        for recorder, attachment in routes.drivers:
            recorder.received.clear()
            routes.say(json.dumps({"id": 77, "result": {}, "sessionId": attachment.root}).encode())
            assert [json.loads(each) for each in recorder.received] == [{"id": 77, "result": {}}]

    run(scenario)


@examples(80, 20_000)
@given(st.lists(st.tuples(st.integers(0, 2 * DRIVERS - 1), MESSAGES), max_size=12), st.data())
def test_drivers_that_come_and_go_leave_nothing(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    def scenario(routes: Routes) -> None:
        for number, message in sent:
            if number >= DRIVERS:
                routes.say(message)
            else:
                routes.devtools.send(routes.drivers[number][1], message)
            if data.draw(st.integers(0, 9)) == 0:
                routes.devtools.detach(routes.drivers[number % DRIVERS][1])
        for _, attachment in routes.drivers:
            routes.devtools.detach(attachment)
        assert routes.devtools._owners == {}
        routes.devtools.close()

    run(scenario)


@examples(60, 10_000)
@given(FIELDS["result"], ODD)
def test_odd_result_of_attaching_is_an_error_to_the_driver_or_a_new_session(result: object, error: object) -> None:
    async def main() -> None:
        routes = Routes()
        await routes.open()
        recorder = Recorder()
        attaching = asyncio.create_task(routes.devtools.attach(recorder))
        await asyncio.sleep(0)
        number = json.loads(routes.sent[-1][:-1])["id"]
        routes.say(json.dumps({"id": number, "result": result, "error": error}).encode())
        try:
            attachment = await attaching
        except DevToolsError:
            attachment = None
        for (_, other), root in zip(routes.drivers, ROOTS, strict=True):
            assert routes.devtools._owners[root] is other
        assert len(routes.devtools._owners) == DRIVERS + (attachment is not None)

    asyncio.run(main())


@examples(60, 20_000)
@given(st.binary(max_size=1_100), st.binary(max_size=1_024) | MESSAGES)
def test_ends_of_a_message_that_is_too_large_are_an_error_to_its_driver_or_dropped(head: bytes, tail: bytes) -> None:
    def scenario(routes: Routes) -> None:
        for start in (head, b'{"id":7,"result":' + head):
            routes.devtools.receive_oversized(start, tail)
        for recorder, _ in routes.drivers:
            assert all("error" in json.loads(each) for each in recorder.received)

    run(scenario)


class Wire:
    """The transport of a driver's connection."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True

    abort = close


HANDSHAKE = b"""\
GET /cdp/devtools/browser/%b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"""


def _frame(first: int, masked: int, size: int | None, payload: bytes) -> bytes:
    """Return a frame with any first byte, masked with zeros or not, that may declare another size."""
    length = len(payload) if size is None else size
    if length < 126:
        head = bytes([first, masked << 7 | length])
    elif length < 2**16:
        head = bytes([first, masked << 7 | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([first, masked << 7 | 127]) + (length % 2**64).to_bytes(8, "big")
    return head + b"\0\0\0\0" * masked + payload


FRAMES = st.builds(
    _frame,
    st.sampled_from((0x81, 0x01, 0x00, 0x80, 0x82, 0x88, 0x89, 0x8A)) | st.integers(0, 255),
    st.sampled_from((1, 1, 1, 0)),
    st.sampled_from((None, None, None, 0, 125, 126, 2**16, 2**31, 2**63, 2**64 - 1)),
    MESSAGES | st.binary(max_size=200),
)


@examples(80, 20_000)
@given(st.lists(FRAMES | st.binary(max_size=30), max_size=6), st.integers(1, 300))
def test_bytes_on_a_websocket_become_messages_of_its_driver_or_close_it(sent: list[bytes], cuts: int) -> None:
    async def main() -> None:
        routes, wire = Routes(), Wire()
        await routes.open()
        head = HANDSHAKE % routes.devtools.browser_id.encode()
        bridge = CdpBridge(wire, Handshake(head, head.split()[1].decode(), {}))  # type: ignore[arg-type]
        opening = asyncio.create_task(bridge.open(routes.devtools))
        await asyncio.sleep(0)
        number = json.loads(routes.sent[-1][:-1])["id"]
        routes.say(json.dumps({"id": number, "result": {"sessionId": "WIRE"}}).encode())
        await opening
        assert wire.written.startswith(b"HTTP/1.1 101 ")
        routes.sent.clear()
        data = b"".join(sent)
        for at in range(0, len(data), cuts):
            if not wire.is_closed:
                bridge.receive(data[at : at + cuts])
        assert all(as_chromium_reads(each)["sessionId"] == "WIRE" for each in routes.sent)
        bridge.connection_lost()
        assert set(routes.devtools._owners) == {*ROOTS}

    asyncio.run(main())
