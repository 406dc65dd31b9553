"""The messages between processes, as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.external.signals import Signal
from app.domain.models.event import EventRecord, StatusDelta
from app.infrastructure.streams.redis.messages import (
    Message,
    RecordsStored,
    SessionDeleted,
    TextAdded,
    TextEnded,
    decode,
    encode,
)

numbers = st.integers(0, 2**63)
records = st.builds(EventRecord, numbers, st.sampled_from(["step", "message"]), st.binary())
messages = st.one_of(
    st.lists(records, min_size=1).map(RecordsStored),
    st.builds(TextAdded, st.text(max_size=50), st.text(max_size=50), numbers, st.text()),
    st.builds(TextEnded, st.text()),
    st.builds(StatusDelta, st.text(), st.none() | st.floats(0, 1e6)),
    st.just(SessionDeleted()),
    st.builds(Signal, kind=st.sampled_from(["wake", "stop", "cancel", "settled"]), session_id=st.text(), up_to=numbers),
)


@given(messages)
def test_decoded_message_equals_the_encoded_one(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200), messages)
def test_decoding_damaged_data_raises_nothing(data: bytes, message: Message) -> None:
    decode(data)
    decode(data + b"\n" + encode(message))
    decode(encode(message)[:-1])
    decode(encode(message) + data)


def test_empty_and_unreadable_data_is_no_message() -> None:
    incomplete = encode(RecordsStored([EventRecord(1, "step", b"data")]))[:-1]
    unreadable = [b"", b"x", b"[]", b"{}", b'["records",[["1","step",0]]]', b'["signal","unknown","s",1]', incomplete]
    assert [decode(data) for data in unreadable] == [None] * len(unreadable)


def test_text_with_half_of_a_surrogate_pair_is_transmitted() -> None:
    text = TextAdded("id", "m", 3, "\ud83d")
    assert decode(encode(text)) == text
