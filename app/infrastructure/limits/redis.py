"""Counters that the processes of an installation share over Redis.

What a process counts, it also counts in its own memory. While Redis cannot be used, that is all there is: every process
then grants an owner the whole limit.
"""

# redis-py leaves parts of its API without types.
# pyright: reportUnknownMemberType=false

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Self

import orjson
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from app.domain.models.limits import Rate
from app.infrastructure.limits.memory import MemoryRateCounter, hit
from app.infrastructure.streams.redis.connection import RedisConnection, explain
from app.infrastructure.streams.redis.publisher import Message

log = logging.getLogger(__name__)

REPLY_SECONDS = 0.1
"""Maximum time that a request waits for Redis, in seconds."""

RETRY_SECONDS = 5.0
"""Time for which Redis is not asked after it failed, in seconds. Then one request tries it."""

_TTL_ERROR = 0.5
"""Maximum error of the remaining time of a window, which Redis rounds to whole seconds."""

_MAX_CONNECTIONS = 16
"""Maximum number of connections to Redis for counting."""

ANNOUNCE_SECONDS = 5.0
"""Seconds between two announcements of all streams of a process."""

EXPIRE_SECONDS = 3 * ANNOUNCE_SECONDS
"""Seconds after which the announced streams of a process that is silent do not count any more."""


class SharedRateCounter:
    """Implements `RateCounter` for several processes. Open it with `async with`."""

    def __init__(self, connection: RedisConnection, *, now: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._now = now
        self._own = MemoryRateCounter()
        self._retry_at = 0.0
        self._failed = False

    async def __aenter__(self) -> Self:
        options: dict[str, Any] = {**self._connection.options, "max_connections": _MAX_CONNECTIONS, "timeout": None}
        self._pool = BlockingConnectionPool(**options)
        storage = RedisStorage(
            "redis://",  # not used, because there is a pool
            implementation="redispy",
            connection_pool=self._pool,  # pyright: ignore[reportArgumentType] - documented, but typed as plain values
            key_prefix=self._connection.name("limits").decode(),
        )
        self._shared = FixedWindowRateLimiter(storage)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.aclose()

    async def hit(self, rate: Rate, key: str, cost: int = 1) -> float:
        """Implement `RateCounter.hit`. What this process alone would refuse is not sent to Redis."""
        wait = await self._own.hit(rate, key, cost)
        if wait or not self._connection.connected or self._now() < self._retry_at:
            return wait
        if self._failed:
            self._retry_at = self._now() + RETRY_SECONDS  # Other requests do not wait beside this one.
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                shared = await hit(self._shared, rate, _storable(key), cost)
        except (RedisError, OSError) as error:
            self._give_up(explain(error))
            return 0.0
        if self._failed:
            self._failed, self._retry_at = False, 0.0
            log.info("limits are counted for all processes again")
        return shared + _TTL_ERROR if shared else 0.0

    def _give_up(self, reason: str) -> None:
        self._retry_at = self._now() + RETRY_SECONDS
        if not self._failed:
            self._failed = True
            log.warning("Redis cannot count limits (%s); until it can, each process counts for itself", reason)


def _storable(key: str) -> str:
    """Return the key without lone surrogates, which cannot be sent."""
    return key.encode("utf-8", "replace").decode()


class AnnouncedStreams:
    """Implements `StreamCounts`: each process announces its streams, and remembers what others announced.

    So opening a stream waits for nothing. Streams that are opened in several processes within milliseconds may exceed a
    limit. Open it with `async with`.
    """

    def __init__(self, connection: RedisConnection, *, now: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._channel = connection.name("open-streams")
        self._now = now
        self._own: dict[str, int] = {}
        self._others: dict[str, dict[bytes, tuple[int, float]]] = {}
        """Count and time of expiry, by owner and process."""

    async def __aenter__(self) -> Self:
        self._connection.subscriber.subscribe(self._channel, self._receive)
        self._task = asyncio.create_task(self._run(), name="open-streams")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._connection.subscriber.unsubscribe(self._channel)

    def elsewhere(self, owner: str) -> int:
        """Implement `StreamCounts.elsewhere`."""
        now = self._now()
        processes = self._others.get(_storable(owner), {})
        return sum(count for count, expires_at in processes.values() if expires_at > now)

    def announce(self, owner: str, count: int) -> None:
        """Implement `StreamCounts.announce`."""
        owner = _storable(owner)
        if count:
            self._own[owner] = count
        else:
            self._own.pop(owner, None)
        self._publish(owner)

    def _publish(self, *owners: str) -> None:
        def build() -> list[Message]:
            counts = {owner: self._own.get(owner, 0) for owner in owners}
            return [Message(self._channel, orjson.dumps(counts))]

        self._connection.publisher.defer((self._channel, owners), build)

    def _receive(self, payload: bytes, sender: bytes) -> None:
        if not payload:
            return  # Something may have been missed; the next announcement has it.
        expires_at = self._now() + EXPIRE_SECONDS
        counts: dict[str, int] = orjson.loads(payload)
        for owner, count in counts.items():
            processes = self._others.setdefault(owner, {})
            processes.pop(sender, None)
            if count:
                processes[sender] = (count, expires_at)
            if not processes:
                del self._others[owner]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            if self._own:
                self._publish(*self._own)
            self._forget_silent()

    def _forget_silent(self) -> None:
        now = self._now()
        for owner, processes in list(self._others.items()):
            left = {process: entry for process, entry in processes.items() if entry[1] > now}
            if left:
                self._others[owner] = left
            else:
                del self._others[owner]
