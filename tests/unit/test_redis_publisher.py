"""What the publisher keeps until it is sent to Redis."""

from collections.abc import Sequence

import pytest

from app.infrastructure.streams.redis.publisher import (
    MAX_DEFERRED,
    MAX_OUTBOX_BYTES,
    MAX_OUTBOX_MESSAGES,
    Command,
    Publisher,
)

PROCESS_ID = b"process"
CHANNEL = b"c"
NOTIFICATION = ("PUBLISH", CHANNEL, PROCESS_ID)


@pytest.fixture
def publisher() -> Publisher:
    publisher = Publisher(PROCESS_ID, b"probe")
    publisher.connected = True
    return publisher


def take_all(publisher: Publisher) -> list[Command]:
    """Return everything that waits, batch by batch."""
    commands: list[Command] = []
    while batch := publisher.take_batch():
        commands += batch
    assert (len(publisher), publisher._messages_size) == (0, 0)
    return commands


def arguments(commands: Sequence[Command]) -> list[tuple[bytes | str | int, ...]]:
    """Return the arguments of `commands`."""
    return [command.arguments for command in commands]


def test_messages_are_sent_in_order_and_before_deferred_commands(publisher: Publisher) -> None:
    publisher.get(b"k", lambda _: None)
    for number in range(2_000):
        publisher.publish(CHANNEL, b"%d" % number)
    messages = [("PUBLISH", CHANNEL, PROCESS_ID + b"%d" % number) for number in range(2_000)]
    assert arguments(take_all(publisher)) == [*messages, ("GET", b"k")]


def test_surplus_of_small_messages_becomes_one_notification_a_channel(publisher: Publisher) -> None:
    for _ in range(3 * MAX_OUTBOX_MESSAGES):
        publisher.publish(CHANNEL, b"x")
    assert len(publisher) == MAX_OUTBOX_MESSAGES + 1
    assert take_all(publisher)[-1].arguments == NOTIFICATION


def test_surplus_of_large_messages_becomes_one_notification_a_channel(publisher: Publisher) -> None:
    for _ in range(10):
        publisher.publish(CHANNEL, b"x" * (MAX_OUTBOX_BYTES // 2))
    assert publisher._messages_size <= MAX_OUTBOX_BYTES
    assert len(publisher) == 3


def test_message_becomes_a_notification_while_redis_is_unavailable(publisher: Publisher) -> None:
    publisher.connected = False
    for _ in range(3):
        publisher.publish(CHANNEL, b"x")
    assert arguments(take_all(publisher)) == [NOTIFICATION]


def test_number_of_deferred_commands_is_bounded(publisher: Publisher) -> None:
    for number in range(2 * MAX_DEFERRED):
        publisher.notify(b"%d" % number)
    assert len(publisher) == MAX_DEFERRED


def test_deferred_commands_are_built_when_they_are_sent_and_once_a_key(publisher: Publisher) -> None:
    texts = ["first"]
    for _ in range(3):
        publisher.defer("text", lambda: [Command(("SET", "text", texts[-1]))])
    texts.append("last")
    assert arguments(take_all(publisher)) == [("SET", "text", "last")]


def test_last_of_several_reads_of_a_key_receives_the_value(publisher: Publisher) -> None:
    values: list[tuple[str, bytes | None]] = []
    publisher.get(b"k", lambda value: values.append(("first", value)))
    publisher.get(b"k", lambda value: values.append(("last", value)))
    (command,) = take_all(publisher)
    assert command.on_reply is not None
    command.on_reply(b"v")
    assert values == [("last", b"v")]


def test_lost_commands_become_notifications_and_repeated_reads(publisher: Publisher) -> None:
    for number in range(100):
        publisher.publish(b"%d" % (number % 3), b"x")
    publisher.get(b"k", lambda _: None)
    lost = take_all(publisher)
    for command in lost:
        assert command.on_lost is not None
        command.on_lost()
    notifications = [("PUBLISH", b"%d" % number, PROCESS_ID) for number in range(3)]
    assert arguments(take_all(publisher)) == [*notifications, ("GET", b"k")]


def test_lost_read_does_not_replace_a_newer_one(publisher: Publisher) -> None:
    values: list[str] = []
    publisher.get(b"k", lambda _: values.append("lost"))
    (lost,) = take_all(publisher)
    publisher.get(b"k", lambda _: values.append("newer"))
    assert lost.on_lost is not None
    lost.on_lost()
    (command,) = take_all(publisher)
    assert command.on_reply is not None
    command.on_reply(None)
    assert values == ["newer"]
