"""One connection to Redis. The only file that imports the vendor's package: it is loaded when a bus is opened."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from redis import exceptions
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError, ResponseError

from app.infrastructure.streams.redis.orders import Command, LinkBroken, NotAllowed, Refused
from app.infrastructure.tls import explain_tls_failure

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


_PING: Command = ("PING",)


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
        """A link that is not open yet.

        Raises:
            ValueError: what the address says of TLS cannot be used.
        """
        try:
            return Link(self._pool.make_connection())
        except RedisError:
            raise ValueError("not the settings of a connection") from None  # whose text may hold them


class Link:
    """A connection that is never repaired: once broken, take another.

    Raises (every method but `close`):
        LinkBroken: nothing more can be sent or received.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def open(self, trial: Sequence[Command] = ()) -> None:
        """Connect, see that Redis answers, and that it allows us the commands of `trial`."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS + _REPLY_SECONDS):
                await self._connection.connect()
        except (RedisError, OSError) as error:
            raise LinkBroken(_words(error)) from None
        await self.send([_PING, *trial])
        for command in (_PING, *trial):
            try:
                await self.receive()
            except Refused as error:
                # What was refused for another reason, such as a full memory, may be taken later.
                if command is _PING or isinstance(error, NotAllowed):
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
        except exceptions.NoPermissionError as error:
            raise NotAllowed(_words(error)) from None
        except ResponseError as error:
            raise Refused(_words(error)) from None
        except (RedisError, OSError) as error:
            raise LinkBroken(_words(error)) from None

    async def close(self) -> None:
        """Let go of the connection, whatever its state."""
        await self._connection.disconnect(nowait=True)


def _words(error: Exception) -> str:
    """`error` for an operator: the vendor's own words may hold the address or a key."""
    match error:
        case exceptions.NoPermissionError():
            return "the user of REDIS_URL may not do this"
        case exceptions.AuthenticationError():
            return "the login in REDIS_URL is missing or refused"
        case exceptions.TimeoutError() | TimeoutError():
            return "it does not answer in time"
        case exceptions.BusyLoadingError():
            return "it is still loading its data"
        case exceptions.ConnectionError() if words := explain_tls_failure(error):
            return words
        case exceptions.ConnectionError() if isinstance(error.__context__, FileNotFoundError):
            return "a file that REDIS_URL names is not there"
        case exceptions.ConnectionError() | OSError():
            return "no connection"
        case _:
            # Its first word says which error it is, such as OOM or DENIED; what follows may say more than that.
            code = str(error).partition(" ")[0]
            return f"it refuses: {code if code.isalpha() and code.isupper() else type(error).__name__}"
