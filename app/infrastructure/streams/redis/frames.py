"""The messages of the feed on a session's channel, as bytes. The JSON of an event is passed on untouched.

A frame is one byte for its kind and the rest: of records, for each its number, the lengths of its type and of its data,
and both; of text, the life of the message it belongs to, the place in it, counted in characters, and the message's id.
Whatever cannot be read is `News`, as is the empty frame: the store knows.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.domain.models.event import EventRecord

RECORDS_BYTES = 256 * 1024
"""Records together larger than this are not sent: whoever follows reads them from the store."""

LIFE_BYTES = 16

_RECORD = struct.Struct("!QBI")
_TEXT = struct.Struct(f"!{LIFE_BYTES}sQB")
_NUMBER = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Records:
    """These were stored."""

    records: Sequence[EventRecord]


@dataclass(frozen=True, slots=True)
class News:
    """Something was stored, up to number `head` when that is known."""

    head: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a message that is being written. `life` tells one writing of it from another."""

    life: bytes
    message_id: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Retracted:
    """Nothing more comes of the message of that life."""

    life: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """The session was deleted."""


Frame = Records | News | Text | Retracted | Dropped


def encode(frame: Frame) -> bytes:
    """The frame as bytes; for `Records` beyond `RECORDS_BYTES` those of `News`."""
    match frame:
        case Records(records):
            if sum(len(record.data) for record in records) > RECORDS_BYTES:
                return b"N" + _NUMBER.pack(records[-1].number)
            return b"R" + b"".join(_encode_records(records))
        case News(head):
            return b"N" + _NUMBER.pack(head)
        case Text(life, message_id, offset, text):
            name = message_id.encode()
            # What a model writes may hold half a surrogate pair.
            return b"T" + _TEXT.pack(life, offset, len(name)) + name + text.encode(errors="surrogatepass")
        case Retracted(life):
            return b"E" + life
        case Dropped():
            return b"D"


def decode(data: bytes) -> Frame:
    """The frame that `data` holds."""
    try:
        return _decode(data[:1], data[1:])
    except (struct.error, UnicodeDecodeError):
        return News()


def _encode_records(records: Sequence[EventRecord]) -> Iterator[bytes]:
    for number, kind, data in records:
        name = kind.encode()
        yield _RECORD.pack(number, len(name), len(data))
        yield name
        yield data


def _decode(kind: bytes, body: bytes) -> Frame:
    match kind:
        case b"R":
            return Records(list(_decode_records(body)))
        case b"N":
            return News(_NUMBER.unpack(body)[0])
        case b"T":
            life, offset, length = _TEXT.unpack_from(body)
            name, text = body[_TEXT.size : _TEXT.size + length], body[_TEXT.size + length :]
            return Text(life, name.decode(), offset, text.decode(errors="surrogatepass"))
        case b"E" if len(body) == LIFE_BYTES:
            return Retracted(body)
        case b"D":
            return Dropped()
        case _:
            return News()


def _decode_records(body: bytes) -> Iterator[EventRecord]:
    place = 0
    while place < len(body):
        number, kind_length, data_length = _RECORD.unpack_from(body, place)
        kind_at = place + _RECORD.size
        data_at = kind_at + kind_length
        place = data_at + data_length
        if place > len(body):
            raise struct.error("cut off")
        yield EventRecord(number, body[kind_at:data_at].decode(), body[data_at:place])
