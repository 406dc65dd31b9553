"""What the processes of the service tell one another through Redis: messages on channels, and notes that expire."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from app.infrastructure.streams.redis.hearing import Confirmed, Heard, Hearing
from app.infrastructure.streams.redis.orders import Command, LinkBroken, Order, Refused, Source
from app.infrastructure.streams.redis.outbox import Outbox

if TYPE_CHECKING:
    from app.infrastructure.streams.redis.link import Link, Links

log = logging.getLogger(__name__)

_OPEN_SECONDS = 1.0
"""How long a start waits for Redis before it goes on without."""

_BACKOFF_SECONDS = (0.1, 1.0)
_PING_SECONDS = 0.5
_CHECK_SECONDS = 1.0
_CLOSE_SECONDS = 0.5

_PING: Command = ("PING",)
IDENTITY_BYTES = 8

_Way = Literal["sending", "hearing"]


class RedisBus:
    """Two connections that mend themselves: one sends, one hears. Open it with `async with`.

    Nothing here fails because Redis does: what cannot be sent becomes a note that there was news, sent when Redis is
    back. Every message carries its sender; one's own are not heard.

    `prefix`: what the names of all channels and keys begin with, so that installations can share a Redis.
    """

    def __init__(self, url: str, *, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self._identity = os.urandom(IDENTITY_BYTES)
        self._outbox = Outbox(bare=self._identity)
        self._sources: list[Source] = []
        self._wanted = asyncio.Event()
        self._hearing = Hearing(self._identity)
        self._up: set[_Way] = set()
        self._both = asyncio.Event()
        self._failure = "not tried yet"
        self._told_away = False
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def connected(self) -> bool:
        """Whether Redis can be reached, as far as is known."""
        return self._both.is_set()

    @property
    def waiting(self) -> int:
        """How many messages, notes and questions wait to be sent."""
        return len(self._outbox)

    @property
    def identity(self) -> bytes:
        """What tells this process from all others."""
        return self._identity

    def name(self, name: str) -> bytes:
        """The channel or key `name` as Redis knows it."""
        return f"{self._prefix}:{name}".encode()

    async def open(self) -> None:
        """Begin to connect; returns once Redis is there, or after a second without it.

        Raises:
            ValueError: the URL is not the address of a Redis.
        """
        from app.infrastructure.streams.redis.link import Links

        try:
            links = Links(self._url)
            links.link()
        except (ValueError, TypeError):
            raise ValueError("not the address of a Redis") from None  # whose text may hold the address
        self._tasks = [
            asyncio.create_task(self._keep("sending", links, self._send)),
            asyncio.create_task(self._keep("hearing", links, self._hearing.serve)),
        ]
        await asyncio.wait([waiter := asyncio.create_task(self._both.wait())], timeout=_OPEN_SECONDS)
        waiter.cancel()

    async def close(self) -> None:
        """Send what waits, as far as that is quick, and let go of Redis."""
        if self.connected:
            await self._answers(_CLOSE_SECONDS)
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self._both.clear()

    async def __aenter__(self) -> "RedisBus":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def check(self) -> str | None:
        """Why Redis cannot be used now; None when it can. Answers within a second or so."""
        if not self.connected:
            return f"Redis is away ({self._failure})"
        return None if await self._answers(_CHECK_SECONDS) else "Redis does not answer"

    def publish(self, channel: str, payload: bytes) -> None:
        """Tell every other process that is subscribed to `channel`, soon. Never waits, never fails.

        When Redis is away the payload is dropped and the channel gets an empty one later.
        """
        if self._closed:
            return
        if "sending" in self._up:
            self._outbox.put(self.name(channel), self._identity + payload)
            self._wanted.set()
        else:
            self._outbox.note(self.name(channel))

    def tell(self, channel: str) -> None:
        """Publish an empty payload on `channel`, once however often this is called before it is sent."""
        if not self._closed:
            self._outbox.note(self.name(channel))
            self._wanted.set()

    def fetch(self, key: str, then: Callable[[bytes | None], None]) -> None:
        """Call `then` with the value of `key`, None when there is none; when Redis is away, once it is back.

        Of calls for the same key that were not answered yet only the last is.
        """

        def answered(reply: object) -> None:
            then(reply if isinstance(reply, bytes) else None)

        name = self.name(key)
        if not self._closed:
            self._outbox.ask(Order(("GET", name), answered, question=name))
            self._wanted.set()

    def add_source(self, source: Source) -> None:
        """Ask `source` whenever something is sent; see `prod`."""
        self._sources.append(source)

    def prod(self) -> None:
        """A source has something to send."""
        self._wanted.set()

    def message(self, channel: str, payload: bytes) -> Order:
        """What a source answers to have `payload` published on `channel`."""
        return Order(("PUBLISH", self.name(channel), self._identity + payload))

    def subscribe(self, channel: str, *, heard: Heard, confirmed: Confirmed) -> None:
        """From soon on call `heard` with the payloads of other processes, an empty one for news that were lost, and
        with the sender's identity.

        `confirmed` is called when the subscription is in force, and again whenever it is after Redis was away: what was
        sent before that moment may have been missed.
        """
        self._hearing.add(self.name(channel), heard, confirmed)

    def unsubscribe(self, channel: str) -> None:
        """Hear no more of `channel`."""
        self._hearing.discard(self.name(channel))

    def confirmed(self, channel: str) -> bool:
        """Whether the subscription to `channel` is in force."""
        return self._hearing.is_confirmed(self.name(channel))

    async def _answers(self, seconds: float) -> bool:
        """Whether everything that waits is sent, and answered, within `seconds`."""
        answered = asyncio.Event()

        def heard(_: object) -> None:
            answered.set()

        self._outbox.ask(Order(_PING, heard))
        self._wanted.set()
        try:
            async with asyncio.timeout(seconds):
                await answered.wait()
        except TimeoutError:
            return False
        return True

    async def _keep(
        self, way: _Way, links: "Links", serve: "Callable[[Link, Callable[[], None]], Awaitable[None]]"
    ) -> None:
        """Serve one connection after another, for as long as the bus is open."""
        first, longest = _BACKOFF_SECONDS
        pause = first

        def is_up() -> None:
            nonlocal pause
            pause = first
            self._now_up(way)

        while True:
            link = links.link()
            try:
                await link.open(self._trial(way))
                await serve(link, is_up)
            except LinkBroken as error:
                self._now_down(way, str(error))
            except Exception as fault:  # the root of the connection: a fault of ours must not leave the bus without it
                log.exception("a fault on the connection to Redis: another one is made")
                self._now_down(way, type(fault).__name__)
                pause = longest
            finally:
                await link.close()
            await asyncio.sleep(pause)
            pause = min(longest, 2 * pause)

    def _trial(self, way: _Way) -> list[Command]:
        """All that will be asked on that connection: rights that are missing show at once, not with the first news."""
        name = self.name("trial")
        if way == "hearing":
            return [("SUBSCRIBE", name), ("UNSUBSCRIBE", name)]
        return [("PUBLISH", name, b""), ("SET", name, b"", "PX", 1), ("GET", name), ("DEL", name)]

    def _now_up(self, way: _Way) -> None:
        self._up.add(way)
        self._wanted.set()
        if len(self._up) == 2:
            self._both.set()
            if self._told_away:
                self._told_away = False
                log.info("Redis is back")

    def _now_down(self, way: _Way, failure: str) -> None:
        self._up.discard(way)
        self._both.clear()
        self._failure = failure
        if way == "sending":
            self._missed(())
        elif "sending" in self._up:
            # It may not know yet, for it only finds out when it sends.
            self._outbox.ask(Order(_PING))
            self._wanted.set()
        if not self._told_away:
            self._told_away = True
            log.warning("Redis is away (%s): until it is back, readers look into the store", failure)

    async def _send(self, link: "Link", is_up: Callable[[], None]) -> None:
        is_up()
        while True:
            try:
                async with asyncio.timeout(_PING_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                self._outbox.ask(Order(_PING))
            self._wanted.clear()
            batch = self._outbox.take()
            if len(self._outbox):
                self._wanted.set()
            else:
                batch += [order for source in self._sources for order in source.orders()]
            if batch:
                try:
                    await self._deliver(link, batch)
                except LinkBroken:
                    self._missed(batch)
                    raise

    async def _deliver(self, link: "Link", batch: list[Order]) -> None:
        await link.send([order.command for order in batch])
        for order in batch:
            try:
                reply = await link.receive()
            except Refused as error:
                if order.command[0] == "PUBLISH":
                    raise LinkBroken(str(error)) from None
                continue  # a note that could not be taken or read: nobody relies on those
            if order.then is not None:
                order.then(reply)

    def _missed(self, batch: Iterable[Order]) -> None:
        self._outbox.missed(batch)
        for source in self._sources:
            source.missed()
