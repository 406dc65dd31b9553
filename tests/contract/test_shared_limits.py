"""Limits that processes share over a real Redis, and what holds while Redis is away."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from app.domain.models.limits import Rate
from app.infrastructure.limits.redis import (
    EXPIRE_SECONDS,
    REPLY_SECONDS,
    RETRY_SECONDS,
    AnnouncedStreams,
    SharedRateCounter,
)
from app.infrastructure.streams.redis.connection import RedisConnection
from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer

RATE = Rate(name="requests", amount=10, seconds=60)


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


class Processes:
    """Two processes of one installation, and the clock that they share."""

    def __init__(self, connections: list[RedisConnection]) -> None:
        self.ahead = 0.0
        self.connections = connections
        self.rates = [SharedRateCounter(each, now=self.now) for each in connections]
        self.streams = [AnnouncedStreams(each, now=self.now) for each in connections]

    def now(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
async def processes(server: RedisServer) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        connections = [RedisConnection(server.url, prefix="p") for _ in range(2)]
        for connection in connections:
            await stack.enter_async_context(connection)
        found = Processes(connections)
        for part in (*found.rates, *found.streams):
            await stack.enter_async_context(part)
        await eventually(lambda: all(each.connected for each in connections))
        await eventually(lambda: all(each.subscriber.is_subscribed(each.name("open-streams")) for each in connections))
        yield found


def limit_logs(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "app.infrastructure.limits.redis"]


async def share_again(processes: Processes, counter: SharedRateCounter) -> None:
    """Let time pass until the counter uses Redis again."""

    async def is_shared() -> bool:
        processes.ahead += RETRY_SECONDS
        await counter.hit(RATE, f"after {processes.ahead}")
        return not counter._failed

    await eventually(lambda: all(each.connected for each in processes.connections))
    await eventually(is_shared)


async def test_processes_count_an_owner_together(processes: Processes, server: RedisServer) -> None:
    first, second = processes.rates
    waits = [await counter.hit(RATE, "me") for counter in (first, second) * 6]
    assert waits[:10] == [0.0] * 10
    assert all(0 < wait <= RATE.seconds + 1 for wait in waits[10:])
    assert await second.hit(RATE, "other") == 0
    assert all(key.startswith(b"p:limits:") for key in await server.execute("KEYS", "*"))
    assert 0 < await server.execute("TTL", (await server.execute("KEYS", "*me*"))[0]) <= RATE.seconds


async def test_refused_cost_leaves_the_rest_for_smaller_ones(processes: Processes) -> None:
    first, second = processes.rates
    assert await first.hit(RATE, "me", 8) == 0
    assert await second.hit(RATE, "me", 5) > 0
    assert await second.hit(RATE, "me", 2) == 0


async def test_killed_redis_makes_each_process_count_for_itself(
    processes: Processes, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = processes.rates
    for _ in range(5):
        assert await first.hit(RATE, "me") == 0
    await server.kill()
    assert [await first.hit(RATE, "me") > 0 for _ in range(7)] == [False] * 5 + [True] * 2
    assert [await second.hit(RATE, "me") > 0 for _ in range(11)] == [False] * 10 + [True]
    assert len([line for line in limit_logs(caplog) if "counts for itself" in line]) <= 2  # once a process
    await server.start()
    for counter in (first, second):
        await share_again(processes, counter)
    waits = [await counter.hit(RATE, "later") for counter in (first, second) * 6]
    assert [wait > 0 for wait in waits] == [False] * 10 + [True] * 2


async def test_frozen_redis_delays_few_requests_and_shortly(
    processes: Processes, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    counter = processes.rates[0]
    assert await counter.hit(RATE, "before") == 0
    server.freeze()
    try:
        began = time.monotonic()
        assert await counter.hit(RATE, "first") == 0
        assert time.monotonic() - began >= REPLY_SECONDS
        began = time.monotonic()
        assert [await counter.hit(RATE, f"owner {number}") for number in range(100)] == [0.0] * 100
        assert time.monotonic() - began < 100 * REPLY_SECONDS / 2  # they do not wait
    finally:
        server.thaw()
    await share_again(processes, counter)
    assert limit_logs(caplog)[-1] == "limits are counted for all processes again"
    # No reply of the time before is taken for that of another command.
    assert [await counter.hit(RATE, "last") for _ in range(3)] == [0.0] * 3
    assert await server.execute("GET", "p:limits:requests/last/10/60/second") == b"3"


async def test_streams_of_another_process_count_until_they_end(processes: Processes) -> None:
    first, second = processes.streams
    first.announce("me", 2)
    first.announce("other", 1)
    await eventually(lambda: second.elsewhere("me") == 2 and second.elsewhere("other") == 1)
    assert first.elsewhere("me") == 0
    first.announce("me", 0)
    await eventually(lambda: second.elsewhere("me") == 0)
    assert second.elsewhere("other") == 1


async def test_streams_of_a_crashed_process_stop_counting(processes: Processes) -> None:
    first, second = processes.streams
    first.announce("me", 2)
    await eventually(lambda: second.elsewhere("me") == 2)
    first._task.cancel()  # it announces nothing any more
    await asyncio.wait([first._task])
    processes.ahead += EXPIRE_SECONDS
    assert second.elsewhere("me") == 0
