"""The `Signals` port, between processes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.domain.external.signals import Signal
from app.infrastructure.streams.memory import LocalSignals
from app.infrastructure.streams.redis import RedisBus, RedisSignals
from tests.support.feeds import until
from tests.support.redis_server import RedisServer

WAKE = Signal(kind="wake", session_id="s", up_to=3)
STOP = Signal(kind="stop", session_id="s", up_to=2**40)
CANCEL = Signal(kind="cancel", session_id="\u00fc")
SETTLED = Signal(kind="settled", session_id="s")


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def buses(server: RedisServer) -> AsyncIterator[list[RedisBus]]:
    async with RedisBus(server.url, prefix="test") as one, RedisBus(server.url, prefix="test") as two:
        async with RedisBus(server.url, prefix="another installation") as other:
            yield [one, two, other]


async def listening(bus: RedisBus) -> tuple[RedisSignals, list[Signal]]:
    signals, heard = RedisSignals(bus), list[Signal]()
    signals.listen(heard.append)
    await until(lambda: bus.confirmed("signals"))
    return signals, heard


async def test_a_signal_reaches_the_others_and_not_its_sender(buses: list[RedisBus]) -> None:
    one, to_one = await listening(buses[0])
    two, to_two = await listening(buses[1])
    _, elsewhere = await listening(buses[2])
    for signal in (WAKE, STOP, CANCEL, SETTLED):
        one.send(signal)
    await until(lambda: to_two == [WAKE, STOP, CANCEL, SETTLED])
    two.send(STOP)
    await until(lambda: to_one == [STOP])
    assert elsewhere == []


async def test_what_is_no_signal_is_not_heard(server: RedisServer, buses: list[RedisBus]) -> None:
    one, _ = await listening(buses[0])
    _, heard = await listening(buses[1])
    sender, up_to = b"0" * 8, b"0" * 8
    for message in (b"", b"short", sender, sender + b"\x09" + up_to + b"s", sender + b"\x01" + up_to + b"\xff"):
        await server.ask("PUBLISH", b"test:signals", message)
    one.send(WAKE)
    await until(lambda: heard == [WAKE])


async def test_signals_go_on_after_redis_was_away(server: RedisServer, buses: list[RedisBus]) -> None:
    one, _ = await listening(buses[0])
    _, heard = await listening(buses[1])
    await server.kill()
    await until(lambda: not buses[0].connected and not buses[1].connected)
    one.send(STOP)
    await server.start()
    await until(lambda: buses[0].connected and buses[1].confirmed("signals"))
    one.send(WAKE)
    await until(lambda: heard == [WAKE])


async def test_in_a_single_process_there_is_nobody_to_hear() -> None:
    signals, heard = LocalSignals(), list[Signal]()
    signals.listen(heard.append)
    signals.send(WAKE)
    await asyncio.sleep(0)
    assert heard == []
