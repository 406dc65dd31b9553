"""What the publisher keeps until it is sent to Redis."""

from collections.abc import Sequence
from typing import cast

import pytest
from redis.asyncio import Redis

from app.infrastructure.streams.redis.publisher import (
    MAX_DEFERRED,
    MAX_OUTBOX_BYTES,
    MAX_OUTBOX_MESSAGES,
    Message,
    Publisher,
)

PROCESS_ID = b"process"
CHANNEL = b"c"
NOTIFICATION = (CHANNEL, b"")


@pytest.fixture
def publisher() -> Publisher:
    publisher = Publisher(PROCESS_ID, b"probe")
    publisher.connected = True
    return publisher


def take_all(publisher: Publisher) -> list[Message]:
    """Return everything that waits, batch by batch."""
    messages: list[Message] = []
    while batch := publisher.take_batch():
        messages += batch
    assert (len(publisher), publisher._messages_size) == (0, 0)
    return messages


def contents(messages: Sequence[Message]) -> list[tuple[bytes, bytes]]:
    """Return the channels and payloads of `messages`."""
    return [(message.channel, message.payload) for message in messages]


def test_messages_are_sent_in_order_and_before_deferred_ones(publisher: Publisher) -> None:
    publisher.notify(CHANNEL)
    for number in range(2_000):
        publisher.publish(CHANNEL, b"%d" % number)
    assert contents(take_all(publisher)) == [*((CHANNEL, b"%d" % number) for number in range(2_000)), NOTIFICATION]


def test_surplus_of_small_messages_becomes_one_notification_a_channel(publisher: Publisher) -> None:
    for _ in range(3 * MAX_OUTBOX_MESSAGES):
        publisher.publish(CHANNEL, b"x")
    assert len(publisher) == MAX_OUTBOX_MESSAGES + 1
    assert contents(take_all(publisher))[-1] == NOTIFICATION


def test_surplus_of_large_messages_becomes_one_notification_a_channel(publisher: Publisher) -> None:
    for _ in range(10):
        publisher.publish(CHANNEL, b"x" * (MAX_OUTBOX_BYTES // 2))
    assert publisher._messages_size <= MAX_OUTBOX_BYTES
    assert len(publisher) == 3


def test_message_becomes_a_notification_while_redis_is_unavailable(publisher: Publisher) -> None:
    publisher.connected = False
    for _ in range(3):
        publisher.publish(CHANNEL, b"x")
    assert contents(take_all(publisher)) == [NOTIFICATION]


def test_number_of_deferred_messages_is_bounded(publisher: Publisher) -> None:
    for number in range(2 * MAX_DEFERRED):
        publisher.notify(b"%d" % number)
    assert len(publisher) == MAX_DEFERRED


def test_deferred_messages_are_built_when_they_are_sent_and_once_a_key(publisher: Publisher) -> None:
    texts = [b"first"]
    for _ in range(3):
        publisher.defer("text", lambda: [Message(CHANNEL, texts[-1])])
    texts.append(b"last")
    assert contents(take_all(publisher)) == [(CHANNEL, b"last")]


async def test_messages_lost_with_the_connection_become_one_notification_a_channel(publisher: Publisher) -> None:
    resent: list[bytes] = []
    for number in range(100):
        publisher.publish(b"%d" % (number % 3), b"x")
    publisher.defer("text", lambda: [Message(CHANNEL, b"text", on_lost=lambda: resent.append(CHANNEL))])

    class FailingRedis:
        """Accepts the first batch and fails at the next one."""

        batches = 0

        def pipeline(self, *, transaction: bool) -> "FailingRedis":
            return self

        async def __aenter__(self) -> "FailingRedis":
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        def publish(self, channel: bytes, message: bytes) -> None:
            assert message.startswith(PROCESS_ID)

        async def execute(self, *, raise_on_error: bool) -> list[object]:
            self.batches += 1
            if self.batches == 2:
                publisher.publish(b"3", b"waiting")
                raise ConnectionError
            return []

    with pytest.raises(ConnectionError):
        await publisher.run(cast("Redis", FailingRedis()), lambda: None)
    assert resent == [CHANNEL]
    assert contents(take_all(publisher)) == [(b"%d" % number, b"") for number in range(4)]
