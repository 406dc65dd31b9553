"""Server-Sent Events: what a use case streams, as bytes that are ready to be sent."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from app.application.services.streams import StreamItem
from app.domain.errors import AnkerError, NotFound
from app.domain.models.event import EventRecord, TextDelta
from app.interfaces.guard import HEAD_KEY
from app.interfaces.wire import delta_frame, sse_frame

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 256 * 1024
"""Bytes after which frames that could go out together are sent; a single frame may be larger."""

EXIT_SECONDS = 2.0
"""How long open streams may take to end by themselves when the server shuts down."""

CLEANUP_SECONDS = 5.0
"""How long a stream may take to give back what it holds once its client is gone."""

BURST = 8
"""Sends that may follow each other at once. From then on, as long as there are less than `PAUSE` seconds between two,
a stream rests that long after each and takes what came meanwhile as one chunk: in a storm of events a send for each
would cost more than everything else together."""

PAUSE = 0.01

_HELLO = b": open\n\n"
_PING = ServerSentEvent(comment="ping", sep="\n")


class EventStream(EventSourceResponse, Generic[T]):
    """The library's response with a leaner way from `items` to the socket.

    What the library does for every chunk (a cancel scope for a send timeout that we do not use, a debug line, a
    conversion) costs about as much as the sending, so `_stream_response` is our own: it takes items and turns them
    into bytes without one more generator in between. Heartbeats, the watch for a client that leaves and the one for
    a server that shuts down stay the library's.

    A reader that does not read is waited for in `send`: nothing piles up for it but the chunk at hand.
    """

    def __init__(
        self,
        items: AsyncGenerator[T, None],
        encode: Callable[[T], Iterable[bytes]],
        *,
        heartbeat: float,
        end_streams: Callable[[], None],
    ) -> None:
        """`encode` makes the frames of an item. `heartbeat`: seconds between two comments. `end_streams` is called
        when the server begins to shut down, and makes every stream's items end soon."""
        # The library's own annotations are incomplete.
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            items, ping=heartbeat, sep="\n", ping_message_factory=lambda: _PING
        )
        self._items = items
        self._encode = encode
        self._end_streams = end_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, or its headers only when the client asked for those."""
        try:
            await super().__call__({**scope, "method": "HEAD"} if HEAD_KEY in scope else scope, receive, send)
        finally:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._items.aclose()

    async def _stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Clients and proxies see an open stream even when nothing happens in the session for a while.
        await send({"type": "http.response.body", "body": _HELLO, "more_body": True})
        try:
            await self._send_items(send)
        except NotFound:
            log.info("stream ended: its session was deleted")
        except AnkerError as error:
            log.warning("stream ended early", extra={"error": str(error), "kind": type(error).__name__})
        async with self._send_lock:  # a heartbeat may be on its way
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_items(self, send: Send) -> None:
        now = asyncio.get_running_loop().time
        quick, last = 0, 0.0
        async for item in self._items:
            for chunk in self._encode(item):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                before, last = last, now()
                quick = quick + 1 if last - before < 2 * PAUSE else 0
            if quick > BURST:
                await rest(PAUSE)

    async def _listen_for_exit_signal_with_grace(self) -> None:
        """The library would cancel the stream in the middle; ours end by themselves, so that clients see a whole
        answer. When one does not, returning cancels it."""
        await self._listen_for_exit_signal()
        self._end_streams()
        await anyio.sleep(EXIT_SECONDS)


async def rest(seconds: float) -> None:
    """Let what comes meanwhile pile up into one chunk."""
    await asyncio.sleep(seconds)


def event_frames(item: StreamItem) -> Iterator[bytes]:
    """The frames of stored events; deltas are left out."""
    if not isinstance(item, TextDelta):
        yield from record_chunks(item)


def all_frames(item: StreamItem) -> Iterator[bytes]:
    """The frames of stored events and of deltas."""
    if isinstance(item, TextDelta):
        yield delta_frame(item)
    else:
        yield from record_chunks(item)


def record_chunks(records: Sequence[EventRecord]) -> Iterator[bytes]:
    """The frames of `records`, joined into chunks of about `CHUNK` bytes: one send for many small events, and no
    second copy of a whole page of large ones."""
    frames: list[bytes] = []
    size = 0
    for record in records:
        frame = sse_frame(record)
        frames.append(frame)
        size += len(frame)
        if size >= CHUNK:
            yield b"".join(frames)
            frames.clear()
            size = 0
    if frames:
        yield frames[0] if len(frames) == 1 else b"".join(frames)
