"""Server-Sent Events: send the items of a stream as encoded frames."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import TypeVar

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from app.application.services.streams import StreamItem
from app.domain.errors import AnkerError, NotFound
from app.domain.models.event import EventRecord, StatusDelta, TextDelta
from app.interfaces.middleware import HEAD_KEY
from app.interfaces.wire import WIRE_VIEWS, WireView, delta_frame, sse_frame

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 64 * 1024
"""Maximum size of the events of a chunk, in bytes.

A client that does not read makes the service keep about two of them. Readers at the same position share them.
"""

_MAX_SHARED_CHUNKS = 8
"""Maximum number of chunks that are kept for other readers."""

EXIT_SECONDS = 2.0
"""Maximum time that open streams may take to end by themselves when the server shuts down, in seconds."""

CLEANUP_SECONDS = 5.0
"""Maximum time that a stream may take to release its resources after its client has left, in seconds."""

BURST = 8
"""Number of sends that may follow each other without a pause.

After that, as long as sends follow each other within `2 * PAUSE` seconds, the stream pauses after each item, and sends
what arrives meanwhile as one chunk. One send for each event would cost more than everything else.
"""

PAUSE = 0.01
"""Length of the pause between two sends of a burst, in seconds."""

_OPEN = b": open\n\n"
_PING = ServerSentEvent(comment="ping", sep="\n")


class EventStream(EventSourceResponse):
    """Stream the frames of `items`, with heartbeats, until the items end or the client leaves.

    A client that does not read makes the stream wait; nothing but the current chunk is kept for it.
    """

    def __init__(
        self,
        items: AsyncGenerator[T, None],
        encode: Callable[[T], Iterable[bytes]],
        *,
        heartbeat: float,
        end_streams: Callable[[], None],
    ) -> None:
        """Create the response.

        Args:
            items: What to stream. It is closed when the response ends.
            encode: Returns the chunks of an item, each one or more whole frames.
            heartbeat: Seconds between two comments that keep the connection open.
            end_streams: Makes the items of every stream end soon. It is called when the server starts to shut down.
        """
        shutdown = anyio.Event()

        async def end_on_shutdown() -> None:
            await shutdown.wait()
            end_streams()

        # The library's own annotations are incomplete.
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            _chunks(items, encode),
            ping=heartbeat,
            sep="\n",
            ping_message_factory=lambda: _PING,
            data_sender_callable=end_on_shutdown,
            shutdown_event=shutdown,
            shutdown_grace_period=EXIT_SECONDS,
            cleanup_timeout=CLEANUP_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, or only its headers if the client asked for those."""
        await super().__call__({**scope, "method": "HEAD"} if HEAD_KEY in scope else scope, receive, send)


async def _chunks(
    items: AsyncGenerator[T, None], encode: Callable[[T], Iterable[bytes]]
) -> AsyncGenerator[bytes, None]:
    # Clients and proxies see an open stream even if nothing happens in the session for a while.
    yield _OPEN
    now = asyncio.get_running_loop().time
    quick, last = 0, 0.0
    try:
        async with aclosing(items):
            async for item in items:
                for chunk in encode(item):
                    yield chunk
                    before, last = last, now()
                    quick = quick + 1 if last - before < 2 * PAUSE else 0
                if quick > BURST:
                    await pause(PAUSE)
    except NotFound:
        log.info("stream ended: its session was deleted")
    except AnkerError as error:
        log.warning("stream ended early", extra={"error": str(error), "kind": type(error).__name__})


async def pause(seconds: float) -> None:
    """Let items accumulate, so that they are sent as one chunk."""
    await asyncio.sleep(seconds)


def event_frames(item: StreamItem, view: WireView = WIRE_VIEWS[""]) -> Iterator[bytes]:
    """Return the frames of stored events, without deltas."""
    if not isinstance(item, TextDelta | StatusDelta):
        yield from record_chunks(view.shown(item))


def all_frames(item: StreamItem, view: WireView = WIRE_VIEWS[""]) -> Iterator[bytes]:
    """Return the frames of stored events and of deltas."""
    if isinstance(item, TextDelta | StatusDelta):
        yield delta_frame(item)
    else:
        yield from record_chunks(view.shown(item))


def record_chunks(records: Sequence[EventRecord]) -> Iterator[bytes]:
    """Join the frames of `records` into chunks of up to `CHUNK` bytes of events.

    Many small events need one send, and of a large event only a chunk is copied at a time.
    """
    start = size = 0
    for end, record in enumerate(records):
        length = len(record.data)
        if size + length > CHUNK:
            if start < end:
                yield _joined_frames(tuple(records[start:end]))
            start, size = end, 0
        if length > CHUNK:
            yield from split_frame(sse_frame(record))
            start = end + 1
        else:
            size += length
    if start < len(records):
        yield _joined_frames(tuple(records[start:]))


@lru_cache(_MAX_SHARED_CHUNKS)
def _joined_frames(records: tuple[EventRecord, ...]) -> bytes:
    """Return the frames of `records`. Readers that receive the same events at the same time share the bytes."""
    return b"".join(map(sse_frame, records))


def split_frame(frame: bytes) -> Iterator[bytes]:
    """Return the parts of a frame, of which only one at a time is copied for a client."""
    for start in range(0, len(frame), CHUNK):
        yield frame[start : start + CHUNK]
