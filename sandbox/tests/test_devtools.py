"""The routing of DevTools messages between one pipe and many drivers, with an imitation of Chromium's side."""

import asyncio
import itertools
import json
import random

import pytest

from sandbox.parts.browser import DevToolsPipe
from sandbox.parts.devtools import DevTools, DevToolsError

PAGE = "P" * 32


class Recorder:
    """A driver that records what it receives."""

    def __init__(self) -> None:
        self.received: list[dict] = []
        self.closed = ""
        self.paused = False

    def deliver(self, message) -> None:
        self.received.append(json.loads(bytes(message)))

    def close(self, reason: str) -> None:
        self.closed = reason

    def pause_driver(self) -> None:
        self.paused = True

    def resume_driver(self) -> None:
        self.paused = False


class Chromium:
    """The other end of the pipe: it attaches sessions and echoes every other call."""

    def __init__(self) -> None:
        self.devtools = DevTools(self.take)
        self.calls: list[dict] = []
        self.sessions: set[str] = set()
        self.numbers = itertools.count()
        self.answers = True

    def take(self, data: bytes) -> None:
        assert data.endswith(b"\0") and data.count(b"\0") == 1
        call = json.loads(data[:-1])
        self.calls.append(call)
        if self.answers:
            asyncio.get_running_loop().call_soon(self.answer, call)

    def answer(self, call: dict) -> None:
        method, session = call["method"], call.get("sessionId")
        if call.get("params", {}).get("targetId") == "none":
            self.say({"id": call["id"], "error": {"code": -32602, "message": "No target with given id found"}})
        elif method.startswith("Target.attachTo"):
            made = f"{next(self.numbers):032X}"
            self.sessions.add(made)
            self.say({"method": "Target.attachedToTarget", "params": {"sessionId": made}}, session)
            self.say({"id": call["id"], "result": {"sessionId": made}}, session)
        elif method == "Target.detachFromTarget":
            self.sessions.discard(call["params"]["sessionId"])
            self.say({"method": "Target.detachedFromTarget", "params": call["params"]}, session)
            self.say({"id": call["id"], "result": {}}, session)
        else:
            self.say({"id": call["id"], "result": {"echo": call.get("params", {}).get("n"), "of": session}}, session)

    def say(self, message: dict, session: str | None = None) -> None:
        whole = {**message, **({"sessionId": session} if session else {})}
        self.devtools.receive(bytearray(json.dumps(whole, separators=(",", ":")).encode()))

    async def driver(self, target: str = "") -> tuple[Recorder, "Sender"]:
        recorder = Recorder()
        return recorder, Sender(self.devtools, await self.devtools.attach(recorder, target))


class Sender:
    """Sends a driver's messages in the ways in which drivers write them."""

    def __init__(self, devtools: DevTools, attachment) -> None:
        self.devtools = devtools
        self.attachment = attachment

    def send(self, style: int = 0, **call) -> None:
        if style == 2:
            call = dict(reversed(call.items()))
        text = json.dumps(call, separators=(",", ":") if style == 0 else None, indent=1 if style == 3 else None)
        self.devtools.send(self.attachment, text.encode())


@pytest.fixture
async def chromium() -> Chromium:
    return Chromium()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_session_of_driver_is_added_and_removed(chromium):
    recorder, sender = await chromium.driver()
    sender.send(id=7, method="Page.enable", params={"n": 1})
    await settle()
    assert chromium.calls[-1]["sessionId"] == sender.attachment.root
    assert recorder.received == [{"id": 7, "result": {"echo": 1, "of": sender.attachment.root}}]


async def test_equal_ids_of_two_drivers_do_not_mix(chromium):
    drivers = [await chromium.driver() for _ in range(2)]
    for number, (_, sender) in enumerate(drivers):
        sender.send(id=1, method="X.y", params={"n": number})
    await settle()
    assert [recorder.received[0]["result"]["echo"] for recorder, _ in drivers] == [0, 1]


async def test_two_drivers_on_same_page_get_own_events(chromium):
    drivers = []
    for _ in range(2):
        recorder, sender = await chromium.driver()
        sender.send(id=1, method="Target.attachToTarget", params={"targetId": PAGE, "flatten": True})
        await settle()
        drivers.append((recorder, recorder.received[-1]["result"]["sessionId"]))
    assert drivers[0][1] != drivers[1][1]
    for recorder, session in drivers:
        chromium.say({"method": "Page.loaded", "params": {"of": session}}, session)
        assert recorder.received[-1] == {"method": "Page.loaded", "params": {"of": session}, "sessionId": session}


async def test_foreign_session_is_refused(chromium):
    _, first = await chromium.driver()
    recorder, second = await chromium.driver()
    before = len(chromium.calls)
    for style in range(4):
        second.send(style, id=style, method="Page.close", sessionId=first.attachment.root)
    second.send(id=4, method="Page.close", sessionId="none")
    assert len(chromium.calls) == before
    assert [answer["id"] for answer in recorder.received] == [0, 1, 2, 3, 4]
    assert {answer["error"]["code"] for answer in recorder.received} == {-32001}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"[1]", -32700),
        (b"{}", -32600),
        (b'{"method":"X.y"}', -32600),
        (b'{"id":1,"method":"X.y"}\0{"id":2,"method":"Browser.close"}', -32700),
        (b'{"id":1,"x":' + b"[" * 100_000, -32700),
    ],
)
async def test_invalid_message_is_answered_and_not_forwarded(chromium, message, code):
    recorder, sender = await chromium.driver()
    before = len(chromium.calls)
    chromium.devtools.send(sender.attachment, message)
    assert recorder.received[0]["error"]["code"] == code
    assert len(chromium.calls) == before


async def test_session_inside_text_is_not_taken_for_session_of_message(chromium):
    recorder, sender = await chromium.driver()
    _, other = await chromium.driver()
    text = f'","sessionId":"{other.attachment.root}"}}'
    sender.send(id=1, method="X.y", params={"n": text})
    sender.send(id=2, method=text)
    await settle()
    assert {call["sessionId"] for call in chromium.calls[-2:]} == {sender.attachment.root}
    assert recorder.received[0]["result"]["echo"] == text


async def test_keys_in_unusual_order_are_routed(chromium):
    recorder, sender = await chromium.driver()
    text = json.dumps({"sessionId": sender.attachment.root, "params": {}, "method": "X.y"})
    chromium.devtools.receive(bytearray(text.encode()))
    assert recorder.received == [{"method": "X.y", "params": {}}]


async def test_unknown_target_is_refused(chromium):
    with pytest.raises(DevToolsError, match="No target"):
        await chromium.driver("none")


async def test_closed_page_closes_its_driver(chromium):
    recorder, sender = await chromium.driver(PAGE)
    chromium.say({"method": "Target.detachedFromTarget", "params": {"sessionId": sender.attachment.root}})
    assert recorder.closed == "the page is gone"


async def test_driver_that_leaves_while_attaching_leaves_no_session(chromium):
    attaching = asyncio.create_task(chromium.driver())
    await asyncio.sleep(0)
    attaching.cancel()
    await asyncio.wait([attaching])
    await settle()
    assert chromium.calls[-1]["method"] == "Target.detachFromTarget" and chromium.sessions == set()


async def test_end_of_browser_fails_calls_and_closes_drivers(chromium):
    recorder, sender = await chromium.driver()
    chromium.answers = False
    call = asyncio.create_task(chromium.devtools.call("Browser.getVersion"))
    await settle()
    chromium.devtools.close()
    with pytest.raises(ConnectionError):
        await call
    assert recorder.closed == "the browser has ended"
    sender.send(id=1, method="X.y")
    with pytest.raises(ConnectionError):
        await chromium.devtools.call("Browser.getVersion")


async def test_full_pipe_pauses_drivers_also_new_ones(chromium):
    recorder, _ = await chromium.driver()
    chromium.devtools.pause_drivers()
    newer, _ = await chromium.driver()
    assert recorder.paused and newer.paused
    chromium.devtools.resume_drivers()
    assert not recorder.paused and not newer.paused


@pytest.mark.parametrize("seed", range(5))
async def test_random_traffic_reaches_its_own_driver(chromium, seed):
    dice = random.Random(seed)
    drivers: dict[Recorder, Sender] = {}
    sent: dict[Recorder, list[int]] = {}
    gone: list[Recorder] = []
    for number in range(400):
        recorder = dice.choice([*drivers, None])
        if recorder is None or len(drivers) < 2:
            recorder, sender = await chromium.driver(dice.choice(["", PAGE]))
            drivers[recorder], sent[recorder] = sender, []
        sender = drivers[recorder]
        nested = sorted(sender.attachment.sessions)
        target = {"sessionId": dice.choice(nested)} if nested and dice.random() < 0.5 else {}
        match dice.randrange(10):
            case 0:
                chromium.devtools.detach(sender.attachment)
                del drivers[recorder]
                gone.append(recorder)
                sent[recorder] = [len(recorder.received)]
            case 1 | 2:
                sender.send(id=number, method="Target.attachToTarget", params={"targetId": PAGE}, **target)
            case 3 if nested:
                params = {"sessionId": dice.choice(nested)}
                sender.send(id=number, method="Target.detachFromTarget", params=params)
                await settle()  # a call in a session that is being detached has no answer
            case _:
                sender.send(dice.randrange(4), id=number, method="X.y", params={"n": number}, **target)
                sent[recorder].append(number)
        if dice.random() < 0.3:
            await settle()
    await settle()
    for recorder in drivers:
        echoes = [each["result"]["echo"] for each in recorder.received if "echo" in each.get("result", {})]
        assert echoes == sent[recorder]
    for recorder in gone:
        assert len(recorder.received) == sent[recorder][0], "a driver that left received something"
    alive = {sender.attachment.root for sender in drivers.values()}
    assert alive <= chromium.sessions
    for sender in drivers.values():
        chromium.devtools.detach(sender.attachment)
    assert chromium.devtools._owners == {}


async def test_messages_are_split_at_any_position():
    pipe = DevToolsPipe()
    received = []
    pipe.devtools.receive = received.append
    messages = [b'{"id":%d}' % number * number for number in range(1, 60)]
    stream = b"".join(message + b"\0" for message in messages)
    dice, at = random.Random(1), 0
    while at < len(stream):
        size = min(dice.choice([1, 2, 7, 500]), len(stream) - at)
        pipe.get_buffer(0)[:size] = stream[at : at + size]
        pipe.buffer_updated(size)
        at += size
    assert received == messages


async def test_oversized_result_becomes_error_and_oversized_event_is_dropped():
    pipe = DevToolsPipe(max_message_bytes=10_000)
    recorder = Recorder()
    attaching = asyncio.create_task(pipe.devtools.attach(recorder))
    await asyncio.sleep(0)

    def feed(message: str) -> None:
        data = message.encode() + b"\0"
        for at in range(0, len(data), 900):
            piece = data[at : at + 900]
            pipe.get_buffer(0)[: len(piece)] = piece
            pipe.buffer_updated(len(piece))

    feed('{"id":1,"result":{"sessionId":"A"}}')
    await attaching
    feed('{"id":5,"result":{"x":"%s"},"sessionId":"A"}' % ("y" * 20_000))
    feed('{"method":"X.y","params":{"x":"%s"},"sessionId":"A"}' % ("y" * 20_000))
    feed('{"id":6,"result":{},"sessionId":"A"}')
    assert [each["id"] for each in recorder.received] == [5, 6]
    assert "larger than" in recorder.received[0]["error"]["message"]


async def test_real_sockets_carry_large_messages_both_ways():
    pipe = DevToolsPipe()
    reads, writes = await pipe.open()
    received = asyncio.get_running_loop().create_future()
    pipe.devtools.receive = received.set_result
    message = b'{"id":1,"x":"%s"}' % (b"z" * 3_000_000)
    loop = asyncio.get_running_loop()
    for each in (reads, writes):
        each.setblocking(False)
    sending = asyncio.create_task(loop.sock_sendall(writes, message + b"\0"))
    assert await asyncio.wait_for(received, 10) == message
    await sending
    pipe._write(message + b"\0")
    got = bytearray()
    while not got.endswith(b"\0"):
        got += await asyncio.wait_for(loop.sock_recv(reads, 1 << 20), 10)
    assert got == message + b"\0"
    pipe.close()
    assert await asyncio.wait_for(loop.sock_recv(reads, 1), 10) == b""
    for each in (reads, writes):
        each.close()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b'{"params":{},"sessionId":"%b"}', id="neither id nor method"),
        pytest.param(b'{"id":1,"result":{},"sessionId":7}', id="session is a number"),
        pytest.param(b'{"id":1,"result":{},"sessionId":"' + b"x" * 65 + b'"}', id="session is too long"),
    ],
)
async def test_odd_message_of_chromium_changes_nothing(chromium, message):
    recorder, sender = await chromium.driver()
    chromium.devtools.receive(bytearray(message.replace(b"%b", sender.attachment.root.encode())))
    sender.send(id=7, method="X.y", params={"n": 1})
    await settle()
    assert recorder.received[-1]["id"] == 7


async def test_attached_event_does_not_take_the_session_of_another_driver(chromium):
    first, sender = await chromium.driver()
    _, other = await chromium.driver()
    event = {"method": "Target.attachedToTarget", "params": {"sessionId": sender.attachment.root}}
    chromium.say(event, other.attachment.root)
    chromium.devtools.detach(other.attachment)
    sender.send(id=7, method="X.y", params={"n": 1})
    await settle()
    assert first.received[-1]["result"]["echo"] == 1


@pytest.mark.parametrize("value", [b"NaN", b"1e400", b"[" * 10_000 + b"]" * 10_000], ids=["NaN", "infinity", "deep"])
async def test_what_is_no_json_to_chromium_is_refused(chromium, value):
    recorder, sender = await chromium.driver()
    before = len(chromium.calls)
    for end in (b"}", b',"sessionId":"%b"}' % sender.attachment.root.encode()):
        chromium.devtools.send(sender.attachment, b'{"id":1,"method":"X.y","params":{"n":%b}%b' % (value, end))
    assert len(chromium.calls) == before
    assert [answer["error"]["code"] for answer in recorder.received] == [-32700, -32700]
