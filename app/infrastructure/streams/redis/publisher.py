"""Sends messages to Redis in batches. Callers never wait, and memory stays bounded."""

# redis-py leaves parts of its API without types.
# pyright: reportUnknownMemberType=false

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from redis.asyncio import Redis
from redis.exceptions import RedisError

MAX_OUTBOX_BYTES = 4 * 2**20
MAX_OUTBOX_MESSAGES = 4_096
"""Limits of the messages that wait to be sent. Messages beyond them are replaced by one notification a channel."""

MAX_DEFERRED = 10_000
"""Maximum number of notifications and other deferred messages that wait to be sent; more are dropped."""

MAX_BATCH = 512
"""Number of messages after which nothing more is added to a batch."""

CONNECT_SECONDS = 1.0
"""Maximum time to connect."""

REPLY_SECONDS = 1.2
"""Maximum time for a reply. With a probe every half second, a hung Redis is noticed within two seconds."""

PING_SECONDS = 0.5
"""Time without messages after which a connection is tested."""


class Message(NamedTuple):
    """A message to a channel.

    `on_sent` is called when Redis has received it. `on_lost` is called if the connection fails before that; by default,
    a notification replaces the message.
    """

    channel: bytes
    payload: bytes
    on_lost: Callable[[], None] | None = None
    on_sent: Callable[[], None] | None = None


class Publisher:
    """Sends messages in their order, and deferred messages. Each batch waits for the replies to the last one.

    A notification is an empty message. It tells the subscribers of a channel that something changed or that messages
    were lost.

    Args:
        process_id: Id of this process; every message begins with it.
        probe: Name of a channel without subscribers, for testing the connection.
    """

    def __init__(self, process_id: bytes, probe: bytes) -> None:
        self._process_id = process_id
        self._probe = probe
        self._messages: deque[Message] = deque()
        self._messages_size = 0
        self._deferred: OrderedDict[object, Callable[[], Sequence[Message]]] = OrderedDict()
        self._wake = asyncio.Event()
        self.connected = False

    def __len__(self) -> int:
        """Return the number of messages that wait to be sent."""
        return len(self._messages) + len(self._deferred)

    def publish(self, channel: bytes, payload: bytes) -> None:
        """Send `payload` to `channel` soon. If Redis is unavailable or too much waits, send only a notification."""
        size = self._messages_size + len(payload)
        if not self.connected or size > MAX_OUTBOX_BYTES or len(self._messages) >= MAX_OUTBOX_MESSAGES:
            self.notify(channel)
        else:
            self._messages.append(Message(channel, payload))
            self._messages_size = size
            self._wake.set()

    def notify(self, channel: bytes) -> None:
        """Send a notification to `channel` soon: one, however often this is called before."""
        self.defer(channel, lambda: [Message(channel, b"")])

    def defer(self, key: object, build: Callable[[], Sequence[Message]]) -> None:
        """Send the messages that `build` returns at the time of sending, once Redis is available.

        Of several calls with the same `key`, the last one counts.
        """
        if len(self._deferred) < MAX_DEFERRED:
            self._deferred[key] = build
            self._wake.set()

    async def flush(self, seconds: float) -> bool:
        """Wait until everything that waits was sent. Return whether Redis replied within `seconds`."""
        sent = asyncio.Event()
        self.defer(sent, lambda: [Message(self._probe, b"", on_sent=sent.set)])
        try:
            async with asyncio.timeout(seconds):
                await sent.wait()
        except TimeoutError:
            return False
        return True

    async def run(self, redis: Redis, on_connected: Callable[[], None]) -> NoReturn:
        """Send batches until the connection fails.

        Raises:
            RedisError: The connection failed, or Redis refused a message.
            OSError: The connection failed, or a reply did not arrive in time.
        """
        batch = [Message(self._probe, b"")]
        try:
            while True:
                async with asyncio.timeout(REPLY_SECONDS if self.connected else CONNECT_SECONDS + REPLY_SECONDS):
                    await self._send(redis, batch)
                if not self.connected:
                    self.connected = True
                    on_connected()
                batch = []
                batch = await self._next_batch()
        finally:
            self.connected = False
            for message in (*batch, *self._messages):
                if message.on_lost is not None:
                    message.on_lost()
                else:
                    self.notify(message.channel)
            self._messages.clear()
            self._messages_size = 0

    async def _send(self, redis: Redis, batch: Sequence[Message]) -> None:
        async with redis.pipeline(transaction=False) as pipeline:
            for message in batch:
                pipeline.publish(message.channel, self._process_id + message.payload)
            for reply in await pipeline.execute(raise_on_error=False):
                if isinstance(reply, RedisError):
                    raise reply
        for message in batch:
            if message.on_sent is not None:
                message.on_sent()

    async def _next_batch(self) -> list[Message]:
        """Wait for messages and return them, or return a probe after `PING_SECONDS` without any."""
        if not len(self):
            self._wake.clear()
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                return [Message(self._probe, b"")]
        return self.take_batch()

    def take_batch(self) -> list[Message]:
        """Remove and return what to send next: messages in their order, then deferred messages."""
        batch: list[Message] = []
        while len(batch) < MAX_BATCH and len(self):
            if self._messages:
                batch.append(self._messages.popleft())
                self._messages_size -= len(batch[-1].payload)
            else:
                _, build = self._deferred.popitem(last=False)
                batch += build()
        return batch
