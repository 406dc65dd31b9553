"""What waits to be sent to Redis, bounded whatever happens there."""

from collections import deque
from collections.abc import Iterable

from app.infrastructure.streams.redis.orders import Order

OUTBOX_BYTES = 4 * 2**20
OUTBOX_MESSAGES = 4_096
"""What waits beyond this is dropped, and its channels are only told that there was news."""

NEWS = 10_000
"""Channels of which is remembered that there was news; others find out by looking into the store."""

_BATCH = 512


class Outbox:
    """Messages in the order in which they were published, notes of channels with news, and questions."""

    def __init__(self, bare: bytes) -> None:
        self._bare = bare
        self._messages: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._news: dict[bytes, None] = {}
        self._questions: dict[object, Order] = {}

    def __len__(self) -> int:
        return len(self._messages) + len(self._news) + len(self._questions)

    @property
    def size(self) -> int:
        """Bytes of the messages that wait."""
        return self._size

    def put(self, channel: bytes, message: bytes) -> None:
        """`message` is to be published on `channel`."""
        if len(self._messages) >= OUTBOX_MESSAGES or self._size + len(message) > OUTBOX_BYTES:
            self.note(channel)
            return
        self._messages.append((channel, message))
        self._size += len(message)

    def note(self, channel: bytes) -> None:
        """There was news on `channel`, which itself is dropped."""
        if len(self._news) < NEWS:
            self._news[channel] = None

    def ask(self, order: Order) -> None:
        """Send `order` after everything that waits now."""
        if len(self._questions) < OUTBOX_MESSAGES:
            self._questions[order.question or object()] = order

    def take(self) -> list[Order]:
        """The next batch; what it held is no longer here."""
        batch: list[Order] = []
        while self._news and len(batch) < _BATCH:
            channel = next(iter(self._news))
            del self._news[channel]
            batch.append(Order(("PUBLISH", channel, self._bare), news=channel))
        while self._messages and len(batch) < _BATCH:
            channel, message = self._messages.popleft()
            self._size -= len(message)
            batch.append(Order(("PUBLISH", channel, message), news=channel))
        while not self._messages and self._questions and len(batch) < _BATCH:
            batch.append(self._questions.pop(next(iter(self._questions))))
        return batch

    def missed(self, batch: Iterable[Order]) -> None:
        """Redis went away while `batch` was sent: of it and of what waits remain notes and questions."""
        for order in batch:
            if order.news is not None:
                self.note(order.news)
            if order.question is not None and order.question not in self._questions:
                self.ask(order)
        for channel, _ in self._messages:
            self.note(channel)
        self._messages.clear()
        self._size = 0
        self._questions = {name: order for name, order in self._questions.items() if order.question is not None}
