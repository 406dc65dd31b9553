"""The messages of the feed between processes, as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.models.event import EventRecord
from app.infrastructure.streams.redis.frames import (
    RECORDS_BYTES,
    Dropped,
    Frame,
    News,
    Records,
    Retracted,
    Text,
    decode,
    encode,
)

LIFE = b"0123456789abcdef"

numbers = st.integers(0, 2**63)
frames = st.one_of(
    st.lists(st.builds(EventRecord, numbers, st.sampled_from(["step", "message"]), st.binary()), min_size=1).map(
        Records
    ),
    st.builds(News, numbers),
    st.builds(Text, st.just(LIFE), st.text(max_size=50), numbers, st.text()),
    st.just(Retracted(LIFE)),
    st.just(Dropped()),
)


@given(frames)
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(st.binary(max_size=200), frames)
def test_what_cannot_be_read_is_taken_for_news(data: bytes, frame: Frame) -> None:
    decode(data)
    decode(encode(frame)[:-1])
    decode(encode(frame) + data)


def test_half_a_surrogate_pair_passes() -> None:
    text = Text(LIFE, "m", 3, "\ud83d")
    assert decode(encode(text)) == text


@pytest.mark.parametrize(("size", "passes"), [(RECORDS_BYTES, True), (RECORDS_BYTES + 1, False)])
def test_records_that_are_too_large_become_news_of_the_newest(size: int, passes: bool) -> None:
    records = Records([EventRecord(6, "step", b""), EventRecord(7, "tool", b"x" * size)])
    assert decode(encode(records)) == (records if passes else News(7))
