"""Sends messages and commands to Redis in batches. Callers never wait, and memory stays bounded."""

# redis-py leaves parts of its API without types.
# pyright: reportUnknownMemberType=false

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

MAX_OUTBOX_BYTES = 4 * 2**20
MAX_OUTBOX_MESSAGES = 4_096
"""Limits of the messages that wait to be sent. Messages beyond them are replaced by one notification a channel."""

MAX_DEFERRED = 10_000
"""Maximum number of notifications and other deferred commands that wait to be sent; more are dropped."""

MAX_BATCH = 512
"""Number of commands after which nothing more is added to a batch."""

CONNECT_SECONDS = 1.0
"""Maximum time to connect."""

REPLY_SECONDS = 1.2
"""Maximum time for a reply. With a ping every half second, a hung Redis is noticed within two seconds."""

PING_SECONDS = 0.5
"""Time without other commands after which a ping is sent."""


class Command(NamedTuple):
    """A Redis command.

    `on_reply` is called with the reply unless Redis refuses the command. `on_lost` is called if the connection fails
    before the reply arrives.
    """

    arguments: tuple[bytes | str | int, ...]
    on_reply: Callable[[object], None] | None = None
    on_lost: Callable[[], None] | None = None


class Publisher:
    """Sends messages in their order, and deferred commands. Each batch waits for the replies to the last one.

    A notification is an empty message. It tells the subscribers of a channel that something changed or that messages
    were lost.

    Args:
        process_id: Id of this process; every message begins with it.
        probe: Name of a key and a channel for testing the permissions.
    """

    def __init__(self, process_id: bytes, probe: bytes) -> None:
        self._process_id = process_id
        self._probe = probe
        self._messages: deque[tuple[bytes, bytes]] = deque()
        self._messages_size = 0
        self._deferred: OrderedDict[object, Callable[[], Sequence[Command]]] = OrderedDict()
        self._wake = asyncio.Event()
        self.connected = False

    def __len__(self) -> int:
        """Return the number of messages and deferred commands that wait to be sent."""
        return len(self._messages) + len(self._deferred)

    def publish(self, channel: bytes, payload: bytes) -> None:
        """Send `payload` to `channel` soon. If Redis is unavailable or too much waits, send only a notification."""
        size = self._messages_size + len(payload)
        if not self.connected or size > MAX_OUTBOX_BYTES or len(self._messages) >= MAX_OUTBOX_MESSAGES:
            self.notify(channel)
        else:
            self._messages.append((channel, payload))
            self._messages_size = size
            self._wake.set()

    def notify(self, channel: bytes) -> None:
        """Send a notification to `channel` soon: one, however often this is called before."""
        self.defer(channel, lambda: [self.message(channel, b"")])

    def defer(self, key: object, build: Callable[[], Sequence[Command]]) -> None:
        """Send the commands that `build` returns at the time of sending, once Redis is available.

        Of several calls with the same `key`, the last one counts.
        """
        if len(self._deferred) < MAX_DEFERRED:
            self._deferred[key] = build
            self._wake.set()

    def get(self, key: bytes, on_value: Callable[[bytes | None], None]) -> None:
        """Read `key` from Redis, once it is available, and call `on_value` with the value or None."""

        def on_reply(reply: object) -> None:
            on_value(reply if isinstance(reply, bytes) else None)

        def on_lost() -> None:
            if key not in self._deferred:
                self.get(key, on_value)

        self.defer(key, lambda: [Command(("GET", key), on_reply, on_lost)])

    def message(self, channel: bytes, payload: bytes, on_lost: Callable[[], None] | None = None) -> Command:
        """Return the command that sends `payload` to `channel`. A lost message becomes a notification by default."""
        return Command(("PUBLISH", channel, self._process_id + payload), None, on_lost or partial(self.notify, channel))

    async def flush(self, seconds: float) -> bool:
        """Wait until everything that waits was sent. Return whether Redis replied within `seconds`."""
        flushed = asyncio.Event()

        def on_reply(_: object) -> None:
            flushed.set()

        self.defer(flushed, lambda: [Command(("PING",), on_reply)])
        try:
            async with asyncio.timeout(seconds):
                await flushed.wait()
        except TimeoutError:
            return False
        return True

    async def run(self, redis: Redis, on_connected: Callable[[], None]) -> NoReturn:
        """Send batches until the connection fails. The first one tests the permissions of the user.

        Raises:
            RedisError: The connection failed, or Redis refused a message or lacks a permission.
            OSError: The connection failed, or a reply did not arrive in time.
        """
        name = self._probe
        probe = [("PUBLISH", name, b""), ("SET", name, b"", "PX", 1), ("GET", name), ("DEL", name)]
        batch = [Command(arguments) for arguments in probe]
        try:
            while True:
                async with asyncio.timeout(REPLY_SECONDS if self.connected else CONNECT_SECONDS + REPLY_SECONDS):
                    await _execute(redis, batch)
                if not self.connected:
                    self.connected = True
                    on_connected()
                batch = []
                batch = await self._next_batch()
        finally:
            self.connected = False
            for command in batch:
                if command.on_lost is not None:
                    command.on_lost()
            for channel, _ in self._messages:
                self.notify(channel)
            self._messages.clear()
            self._messages_size = 0

    async def _next_batch(self) -> list[Command]:
        if not len(self):
            self._wake.clear()
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                return [Command(("PING",))]
        return self.take_batch()

    def take_batch(self) -> list[Command]:
        """Remove and return the commands to send next: messages in their order, then deferred commands."""
        batch: list[Command] = []
        while len(batch) < MAX_BATCH and len(self):
            if self._messages:
                channel, payload = self._messages.popleft()
                self._messages_size -= len(payload)
                batch.append(self.message(channel, payload))
            else:
                _, build = self._deferred.popitem(last=False)
                batch += build()
        return batch


async def _execute(redis: Redis, batch: Sequence[Command]) -> None:
    """Execute `batch` in one round trip and pass on the replies.

    A refused message or a missing permission raises the error. Other refusals, such as of a SET by a full Redis, do not
    matter: nobody relies on those commands.
    """
    async with redis.pipeline(transaction=False) as pipeline:
        for command in batch:
            pipeline.execute_command(*command.arguments)
        replies = await pipeline.execute(raise_on_error=False)
    for command, reply in zip(batch, replies, strict=True):
        if isinstance(reply, NoPermissionError) or (
            isinstance(reply, RedisError) and command.arguments[0] == "PUBLISH"
        ):
            raise reply
        if command.on_reply is not None and not isinstance(reply, RedisError):
            command.on_reply(reply)
