"""The `Signals` port between processes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.domain.external.signals import Signal
from app.infrastructure.streams.memory import LocalSignals
from app.infrastructure.streams.redis.connection import RedisConnection
from app.infrastructure.streams.redis.feed import RedisSignals
from tests.support.eventually import eventually
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
async def connections(server: RedisServer) -> AsyncIterator[list[RedisConnection]]:
    async with (
        RedisConnection(server.url, prefix="test") as first,
        RedisConnection(server.url, prefix="test") as second,
        RedisConnection(server.url, prefix="another installation") as other,
    ):
        yield [first, second, other]


async def listen(connection: RedisConnection) -> tuple[RedisSignals, list[Signal]]:
    """Return the signals of a process, and the list to which received ones are added."""
    signals, received = RedisSignals(connection), list[Signal]()
    signals.listen(received.append)
    await eventually(lambda: connection.subscriber.is_subscribed(connection.name("signals")))
    return signals, received


async def test_signal_reaches_other_processes_of_the_installation_only(connections: list[RedisConnection]) -> None:
    first, received_by_first = await listen(connections[0])
    second, received_by_second = await listen(connections[1])
    _, received_elsewhere = await listen(connections[2])
    for signal in (WAKE, STOP, CANCEL, SETTLED):
        first.send(signal)
    await eventually(lambda: received_by_second == [WAKE, STOP, CANCEL, SETTLED])
    second.send(STOP)
    await eventually(lambda: received_by_first == [STOP])
    assert received_elsewhere == []


async def test_invalid_messages_are_ignored(server: RedisServer, connections: list[RedisConnection]) -> None:
    first, _ = await listen(connections[0])
    _, received = await listen(connections[1])
    sender = b"0" * 16
    payloads = [b"", b"[]", b"\xff", b'["signal","unknown","s",1]', b'["signal","wake","s","1"]', b'["deleted"]']
    for message in (b"", b"short", *(sender + payload for payload in payloads)):
        await server.execute("PUBLISH", b"test:signals", message)
    first.send(WAKE)
    await eventually(lambda: received == [WAKE])


async def test_signals_continue_after_redis_restarted(server: RedisServer, connections: list[RedisConnection]) -> None:
    first, _ = await listen(connections[0])
    _, received = await listen(connections[1])
    await server.kill()
    await eventually(lambda: not connections[0].connected and not connections[1].connected)
    first.send(STOP)
    await server.start()
    channel = connections[1].name("signals")
    await eventually(lambda: connections[0].connected and connections[1].subscriber.is_subscribed(channel))
    first.send(WAKE)
    await eventually(lambda: received == [WAKE])


async def test_single_process_receives_no_signals() -> None:
    signals, received = LocalSignals(), list[Signal]()
    signals.listen(received.append)
    signals.send(WAKE)
    await asyncio.sleep(0)
    assert received == []
