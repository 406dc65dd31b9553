"""The messages that processes exchange over Redis, as bytes.

A message is a line of JSON, followed by raw bytes: the stored JSON of events, which is passed on unchanged, or text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import orjson

from app.domain.external.signals import Signal, SignalKind
from app.domain.models.event import EventRecord, StatusDelta


@dataclass(frozen=True, slots=True)
class RecordsStored:
    """These records were stored."""

    records: Sequence[EventRecord]


@dataclass(frozen=True, slots=True)
class TextAdded:
    """A piece of a message being written; `offset` is its position in characters.

    `text_id` identifies the writing. It begins with the id of the process that writes.
    """

    text_id: str
    message_id: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class TextEnded:
    """Nothing will be added to this text."""

    text_id: str


@dataclass(frozen=True, slots=True)
class SessionDeleted:
    """The session was deleted."""


Message = RecordsStored | TextAdded | TextEnded | StatusDelta | SessionDeleted | Signal


def encode(message: Message) -> bytes:
    """Return `message` as bytes."""
    body = b""
    match message:
        case RecordsStored(records):
            header = ("records", [(record.number, record.type, len(record.data)) for record in records])
            body = b"".join(record.data for record in records)
        case TextAdded(text_id, message_id, offset, text):
            header = ("text", text_id, message_id, offset)
            body = text.encode(errors="surrogatepass")  # A model may write half of a surrogate pair.
        case TextEnded(text_id):
            header = ("text_ended", text_id)
        case StatusDelta(text, retry_in):
            header = ("status", retry_in)
            body = text.encode(errors="surrogatepass")
        case SessionDeleted():
            header = ("deleted",)
        case Signal():
            header = ("signal", message.kind, message.session_id, message.up_to)
    return orjson.dumps(header) + b"\n" + body


def decode(data: bytes) -> Message | None:
    """Return the message in `data`, or None if `data` is empty or cannot be read."""
    header, _, body = data.partition(b"\n")
    try:
        match orjson.loads(header):
            case ["records", [*items]]:
                return RecordsStored(list(_decode_records(items, body)))
            case ["text", str(text_id), str(message_id), int(offset)]:
                return TextAdded(text_id, message_id, offset, body.decode(errors="surrogatepass"))
            case ["text_ended", str(text_id)]:
                return TextEnded(text_id)
            case ["status", (int() | float() | None) as retry_in]:
                return StatusDelta(body.decode(errors="surrogatepass"), retry_in)
            case ["deleted"]:
                return SessionDeleted()
            case ["signal", str(kind), str(session_id), int(up_to)] if kind in get_args(SignalKind):
                return Signal(kind=cast("SignalKind", kind), session_id=session_id, up_to=up_to)
            case _:
                return None
    except ValueError:  # orjson.JSONDecodeError and UnicodeDecodeError are ValueErrors.
        return None


def _decode_records(items: Sequence[object], body: bytes) -> Iterator[EventRecord]:
    start = 0
    for item in items:
        match item:
            case [int(number), str(kind), int(length)]:
                yield EventRecord(number, kind, body[start : start + length])
                start += length
            case _:
                raise ValueError("not a record")
    if start != len(body):
        raise ValueError("incomplete records")
