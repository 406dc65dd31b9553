"""What waits to be sent to Redis."""

from app.infrastructure.streams.redis.orders import Order
from app.infrastructure.streams.redis.outbox import NEWS, OUTBOX_BYTES, OUTBOX_MESSAGES, Outbox

BARE = b"sender"


def taken(outbox: Outbox) -> list[Order]:
    orders: list[Order] = []
    while batch := outbox.take():
        orders += batch
    return orders


def test_messages_leave_in_their_order_and_questions_after_them() -> None:
    outbox = Outbox(BARE)
    outbox.ask(Order(("GET", b"k"), question=b"k"))
    for number in range(2_000):
        outbox.put(b"c", b"%d" % number)
    assert [order.command[-1] for order in taken(outbox)] == [*(b"%d" % number for number in range(2_000)), b"k"]
    assert (len(outbox), outbox.size) == (0, 0)


def test_many_small_messages_become_one_note_a_channel() -> None:
    outbox = Outbox(BARE)
    for _ in range(3 * OUTBOX_MESSAGES):
        outbox.put(b"c", b"x")
    assert len(outbox) == OUTBOX_MESSAGES + 1
    assert taken(outbox)[0].command == ("PUBLISH", b"c", BARE)


def test_few_large_messages_become_one_note_a_channel() -> None:
    outbox = Outbox(BARE)
    for _ in range(10):
        outbox.put(b"c", b"x" * (OUTBOX_BYTES // 2))
    assert outbox.size <= OUTBOX_BYTES
    assert len(outbox) == 3


def test_the_channels_that_are_remembered_are_bounded() -> None:
    outbox = Outbox(BARE)
    for number in range(2 * NEWS):
        outbox.note(b"%d" % number)
    assert len(outbox) == NEWS


def test_of_what_was_missed_remain_one_note_a_channel_and_the_questions() -> None:
    outbox = Outbox(BARE)
    for number in range(1_000):
        outbox.put(b"%d" % (number % 3), b"x")
    outbox.ask(Order(("PING",)))
    batch = outbox.take()
    outbox.ask(Order(("GET", b"k"), question=b"k"))
    outbox.missed([*batch, Order(("SET", b"k")), Order(("GET", b"other"), question=b"other")])
    commands = [order.command for order in taken(outbox)]
    assert sorted(commands[:3]) == [("PUBLISH", b"0", BARE), ("PUBLISH", b"1", BARE), ("PUBLISH", b"2", BARE)]
    assert sorted(commands[3:]) == [("GET", b"k"), ("GET", b"other")]


def test_of_the_same_question_only_the_last_is_asked() -> None:
    outbox, answers = Outbox(BARE), list[object]()
    outbox.ask(Order(("GET", b"k"), then=lambda _: None, question=b"k"))
    outbox.ask(Order(("GET", b"k"), then=answers.append, question=b"k"))
    (order,) = taken(outbox)
    assert order.then is not None
    order.then(b"v")
    assert answers == [b"v"]
