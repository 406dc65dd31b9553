"""The connection that hears: which channels are wanted, which are subscribed to, and who hears what comes."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, cast

from app.infrastructure.streams.redis.orders import Command, LinkBroken, Refused

if TYPE_CHECKING:
    from app.infrastructure.streams.redis.link import Link

Heard = Callable[[bytes, bytes], None]
"""Called with a payload and its sender."""
Confirmed = Callable[[], None]

_PING_SECONDS = 0.5
_CHANNELS_AT_ONCE = 500
_MESSAGES_AT_ONCE = 64
"""Messages after which others have a turn on the event loop."""


@dataclass(frozen=True, slots=True)
class _Listener:
    heard: Heard
    confirmed: Confirmed


class Hearing:
    """Keeps the subscriptions of one connection as they are wanted. `identity`: what one's own messages begin with."""

    def __init__(self, identity: bytes) -> None:
        self._identity = identity
        self._listeners: dict[bytes, _Listener] = {}
        self._asked: set[bytes] = set()
        self._unanswered: Counter[bytes] = Counter()
        self._confirmed: set[bytes] = set()
        self._changed = asyncio.Event()

    def add(self, channel: bytes, heard: Heard, confirmed: Confirmed) -> None:
        """Hear `channel` from soon on; see `RedisBus.subscribe`."""
        self._listeners[channel] = _Listener(heard, confirmed)
        if channel in self._confirmed:  # it was let go and is wanted again before Redis was told
            asyncio.get_running_loop().call_soon(self._confirm, channel)
        self._changed.set()

    def discard(self, channel: bytes) -> None:
        """Hear no more of `channel`."""
        self._listeners.pop(channel, None)
        self._changed.set()

    def is_confirmed(self, channel: bytes) -> bool:
        """Whether the subscription is in force."""
        return channel in self._confirmed and channel in self._listeners

    async def serve(self, link: "Link", is_up: Callable[[], None]) -> None:
        """Subscribe to what is wanted and pass on what comes, until the connection breaks."""
        self._asked.clear()
        self._unanswered.clear()
        self._confirmed.clear()
        self._changed.set()
        is_up()
        asking = asyncio.create_task(self._ask(link))
        try:
            await self._hear(link)
        finally:
            self._confirmed.clear()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, link: "Link") -> None:
        """A connection that breaks here breaks in `_hear` too."""
        with suppress(LinkBroken):
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PING_SECONDS):
                        await self._changed.wait()
                self._changed.clear()
                await link.send([*self._changes(), ("PING",)])

    def _changes(self) -> Iterator[Command]:
        wanted = self._listeners.keys()
        gone, new = self._asked - wanted, wanted - self._asked
        self._confirmed -= gone
        self._unanswered.update(new)
        self._asked = set(wanted)
        for verb, channels in (("UNSUBSCRIBE", iter(gone)), ("SUBSCRIBE", iter(new))):
            while some := tuple(islice(channels, _CHANNELS_AT_ONCE)):
                yield (verb, *some)

    async def _hear(self, link: "Link") -> None:
        count = 0
        while True:
            try:
                reply = await link.receive()
            except Refused as error:
                raise LinkBroken(str(error)) from None
            if isinstance(reply, list):
                self._take(cast("Sequence[object]", reply))
            count += 1
            if count % _MESSAGES_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _take(self, reply: Sequence[object]) -> None:
        match reply:
            case [b"message", bytes(channel), bytes(message)]:
                listener = self._listeners.get(channel)
                sender, payload = message[: len(self._identity)], message[len(self._identity) :]
                if listener is not None and sender != self._identity:
                    listener.heard(payload, sender)
            case [b"subscribe", bytes(channel), _]:
                self._unanswered[channel] -= 1
                if self._unanswered[channel] > 0:
                    return
                del self._unanswered[channel]
                if channel in self._asked:
                    self._confirmed.add(channel)
                    self._confirm(channel)
            case _:
                pass

    def _confirm(self, channel: bytes) -> None:
        listener = self._listeners.get(channel)
        if listener is not None and channel in self._confirmed:
            listener.confirmed()
