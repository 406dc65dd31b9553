"""One connection to Redis. The only file that imports the vendor's package: it is loaded when a bus is opened."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError, ResponseError

from app.infrastructure.streams.redis.orders import Command, LinkBroken, Refused

_CONNECT_SECONDS = 1.0
_REPLY_SECONDS = 1.2
"""A Redis that hangs is away: with a ping every half second this is noticed within two."""

_SETTINGS: dict[str, Any] = {
    "socket_connect_timeout": _CONNECT_SECONDS,
    # The package's own limit on sending is deaf to who cuts it off at the moment at which everything has gone out.
    "socket_timeout": None,
    "health_check_interval": 0,
    "decode_responses": False,
    "protocol": 2,
    "driver_info": None,
}


class Links:
    """Makes links to one Redis.

    Raises:
        ValueError: `url` is not the address of a Redis.
    """

    def __init__(self, url: str) -> None:
        pool: Any = ConnectionPool
        self._pool: ConnectionPool = pool.from_url(url)
        # Afterwards, for what an address says of these would win otherwise.
        cast("dict[str, Any]", self._pool.connection_kwargs).update(_SETTINGS)  # pyright: ignore[reportUnknownMemberType]

    def link(self) -> "Link":
        """A link that is not open yet."""
        return Link(self._pool.make_connection())


class Link:
    """A connection that is never repaired: once broken, take another.

    Raises (every method but `close`):
        LinkBroken: nothing more can be sent or received.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def open(self) -> None:
        """Connect, and see that Redis answers."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS + _REPLY_SECONDS):
                await self._connection.connect()
        except (RedisError, OSError) as error:
            raise LinkBroken(type(error).__name__) from None
        await self.send([("PING",)])
        try:
            await self.receive()
        except Refused as error:
            raise LinkBroken(str(error)) from None

    async def send(self, commands: Sequence[Command]) -> None:
        """Send `commands` at once; each will have a reply."""
        packed = self._connection.pack_commands(commands)
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                await self._connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            raise LinkBroken(type(error).__name__) from None

    async def receive(self) -> object:
        """The next reply or message.

        Raises:
            Refused: Redis answered with an error.
        """
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                return cast("object", await self._connection.read_response())
        except ResponseError as error:
            raise Refused(type(error).__name__) from None
        except (RedisError, OSError) as error:
            raise LinkBroken(type(error).__name__) from None

    async def close(self) -> None:
        """Let go of the connection, whatever its state."""
        await self._connection.disconnect(nowait=True)
