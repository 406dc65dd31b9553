"""The connection of one process to Redis, over which the processes of the service exchange messages.

Redis carries hints only: whatever is lost there is found in the store.
"""

# redis-py leaves parts of its API without types.
# pyright: reportUnknownMemberType=false

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn, Self, cast

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from app.infrastructure.streams.redis.publisher import CONNECT_SECONDS, PING_SECONDS, REPLY_SECONDS, Publisher
from app.infrastructure.tls import explain_tls_failure

log = logging.getLogger(__name__)

_OPEN_SECONDS = 1.0
"""Maximum time that the start of the process waits for Redis."""

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0
"""Pauses between two attempts to connect; they double from the first to the longest."""

_CHECK_SECONDS = 1.0
"""Maximum time for Redis to reply to a readiness check."""

_CLOSE_SECONDS = 0.5
"""Maximum time for each step of closing: sending what waits, and ending the tasks."""

_MESSAGES_PER_TURN = 64
"""Number of messages after which other tasks get a turn on the event loop."""

_POOL_OPTIONS: dict[str, Any] = {
    # redis-py applies a socket_timeout with asyncio.wait_for, which in Python 3.11 can swallow a cancellation
    # (https://github.com/python/cpython/issues/86296). asyncio.timeout is used instead.
    "socket_timeout": None,
    "socket_connect_timeout": CONNECT_SECONDS,
    "health_check_interval": 0,
    "retry_on_timeout": False,
    "decode_responses": False,
    "protocol": 2,
    "max_connections": None,
    "driver_info": None,  # Sends no CLIENT SETINFO, which a restricted user may not execute.
}
"""Options that the query of the URL cannot change."""


Listener = Callable[[bytes, bytes], None]
"""Called with the payload of each message of another process, and with the id of that process.

An empty payload says that messages may have been missed: another process sent a notification, or Redis confirmed the
subscription, which it does again after each reconnection. A confirmation has an empty process id.
"""


class RedisConnection:
    """Publishes to other processes over one connection and receives from them over another. Open it with `async with`.

    Both reconnect by themselves. No method fails because Redis does.

    Args:
        url: Address of the Redis.
        prefix: Begins the names of all channels, so that several installations can share a Redis.
    """

    def __init__(self, url: str, *, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self.process_id = secrets.token_hex(8).encode()
        """Random id of this process."""
        self.publisher = Publisher(self.process_id, self.name("probe"))
        self.subscriber = Subscriber(self.process_id, self.name("probe"))
        self._connected_roles: set[str] = set()
        self._connected = asyncio.Event()
        self._failure = ""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> bool:
        """Whether Redis can be used, as far as is known."""
        return self._connected.is_set()

    @property
    def options(self) -> dict[str, Any]:
        """Options for a pool of further connections to this Redis."""
        return {**parse_url(self._url), **_POOL_OPTIONS}

    def name(self, name: str) -> bytes:
        """Return the name of a channel or the prefix of keys in Redis."""
        return f"{self._prefix}:{name}".encode()

    async def __aenter__(self) -> Self:
        """Begin to connect. Return when Redis is connected, or after a second.

        Raises:
            ValueError: The URL is not a valid address of a Redis.
        """
        self._redis = _create_client(lambda: self.options)
        self._tasks = [
            asyncio.create_task(self._keep_connected("publisher", self.publisher.run)),
            asyncio.create_task(self._keep_connected("subscriber", self.subscriber.run)),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._connected.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send what waits, if that takes little time, and disconnect."""
        if self.connected:
            await self.publisher.flush(_CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
        self._connected.clear()
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def check(self) -> str | None:
        """Return why Redis cannot be used, or None if it can. Takes at most about one second."""
        if not self.connected:
            return f"Redis is unavailable ({self._failure or 'still connecting'})"
        return None if await self.publisher.flush(_CHECK_SECONDS) else "Redis does not respond"

    async def _keep_connected(self, role: str, run: Callable[[Redis, Callable[[], None]], Awaitable[NoReturn]]) -> None:
        """Call `run` again whenever its connection fails."""
        pause = _FIRST_PAUSE_SECONDS
        reason = ""

        def on_connected() -> None:
            nonlocal pause
            pause = _FIRST_PAUSE_SECONDS
            self._connected_roles.add(role)
            if len(self._connected_roles) == 2:
                self._connected.set()
                if self._failure:
                    log.info("Redis is available again")
                self._failure = ""

        while True:
            try:
                await run(self._redis, on_connected)
            except (RedisError, OSError) as error:
                reason = explain(error)
            except Exception as fault:  # The root of the task: a programming error must not end the connection.
                log.exception("the Redis %s failed and will reconnect", role)
                reason, pause = type(fault).__name__, _LONGEST_PAUSE_SECONDS
            self._connected_roles.discard(role)
            self._connected.clear()
            if not self._failure:
                text = "until it is back, readers poll the store, and each process counts limits for itself"
                log.warning("Redis is unavailable (%s); %s", reason, text)
            self._failure = reason
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)


class Subscriber:
    """Receives messages over one connection for any number of listeners, one a channel."""

    def __init__(self, process_id: bytes, probe: bytes) -> None:
        self._process_id = process_id
        self._probe = probe
        self._listeners: dict[bytes, Listener] = {}
        self._subscribed: set[bytes] = set()
        self._changed_channels: set[bytes] = set()
        self._wake = asyncio.Event()

    def subscribe(self, channel: bytes, listener: Listener) -> None:
        """Receive the messages of other processes on `channel`, from soon on."""
        self._listeners[channel] = listener
        self._changed_channels.add(channel)
        self._wake.set()

    def unsubscribe(self, channel: bytes) -> None:
        """Receive no more messages on `channel`."""
        self._listeners.pop(channel, None)
        self._changed_channels.add(channel)
        self._wake.set()

    def is_subscribed(self, channel: bytes) -> bool:
        """Return whether Redis has confirmed the subscription to `channel`."""
        return channel in self._subscribed

    async def run(self, redis: Redis, on_connected: Callable[[], None]) -> NoReturn:
        """Receive messages until the connection fails. Each connection has a `PubSub` of its own.

        Raises:
            RedisError: The connection failed, or the user lacks a permission.
            OSError: The connection failed, or Redis does not respond.
        """
        loop = asyncio.get_running_loop()
        async with redis.pubsub() as pubsub, asyncio.timeout(CONNECT_SECONDS + REPLY_SECONDS) as deadline:
            await pubsub.subscribe(self._probe)
            await pubsub.unsubscribe(self._probe)
            self._changed_channels = set(self._listeners)
            sender = asyncio.create_task(self._send_commands(pubsub))
            number = 0
            try:
                while True:
                    message = cast("object", await pubsub.get_message(timeout=None))
                    if sender.done():
                        sender.result()  # Raises the error that ended it.
                    # redis-py sends health checks on a subscribed connection but does not notice missing replies
                    # (https://github.com/redis/redis-py/issues/2417). Here, pings are sent and the deadline notices.
                    deadline.reschedule(loop.time() + REPLY_SECONDS)
                    self._handle(message, on_connected)
                    number += 1
                    if number % _MESSAGES_PER_TURN == 0:
                        await asyncio.sleep(0)
            finally:
                self._subscribed.clear()
                sender.cancel()
                await asyncio.wait([sender])

    async def _send_commands(self, pubsub: PubSub) -> None:
        """Send the changes of the subscriptions as they come, and pings."""
        while True:
            channels, self._changed_channels = self._changed_channels, set()
            self._wake.clear()
            self._subscribed -= channels
            wanted = channels & self._listeners.keys()
            if unwanted := channels - wanted:
                await pubsub.unsubscribe(*unwanted)
            if wanted:
                await pubsub.subscribe(*wanted)
            await pubsub.ping()
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_SECONDS):
                    await self._wake.wait()

    def _handle(self, message: object, on_connected: Callable[[], None]) -> None:
        match message:
            case {"type": "message", "channel": bytes(channel), "data": bytes(data)}:
                sender, payload = data[: len(self._process_id)], data[len(self._process_id) :]
                listener = self._listeners.get(channel)
                if listener is not None and sender != self._process_id:
                    listener(payload, sender)
            case {"type": "subscribe", "channel": bytes(channel)} if channel in self._listeners:
                self._subscribed.add(channel)
                self._listeners[channel](b"", b"")
            case {"type": "unsubscribe", "channel": self._probe}:
                on_connected()
            case _:
                pass


def _create_client(read_options: Callable[[], dict[str, Any]]) -> Redis:
    try:
        pool = ConnectionPool(**read_options())
        pool.make_connection()  # Validates the options; does not connect.
    except (ValueError, TypeError, RedisError):
        raise ValueError("not the address of a Redis") from None  # The original error may contain the address.
    return Redis.from_pool(pool)


_REASONS: Mapping[type[Exception], str] = {
    exceptions.NoPermissionError: "the user of REDIS_URL may not do this",
    exceptions.AuthenticationError: "the login in REDIS_URL is missing or refused",
    exceptions.BusyLoadingError: "it is still loading its data",
    exceptions.TimeoutError: "it does not respond in time",
    exceptions.ConnectionError: "no connection",
    TimeoutError: "it does not respond in time",
    OSError: "no connection",
}
"""Reasons by type of error; the first type that matches counts."""


def explain(error: Exception) -> str:
    """Return the reason of `error` for an operator, without the addresses and names in the library's own texts."""
    if isinstance(error, exceptions.ConnectionError) and (reason := explain_tls_failure(error)):
        return reason
    if isinstance(error.__context__, FileNotFoundError):
        return "a file that REDIS_URL names does not exist"
    for kind, reason in _REASONS.items():
        if isinstance(error, kind):
            return reason
    # The first word of a refusal is its code, such as OOM or DENIED.
    code = str(error).partition(" ")[0]
    return f"it refuses: {code if code.isalpha() and code.isupper() else type(error).__name__}"
