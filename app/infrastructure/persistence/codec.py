"""The stored form of events, messages and checkpoints: integer keys, and JSON made from the domain's dataclasses.

A row that was written once can be read for ever: new fields have defaults, and removed fields are ignored.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, cast

import orjson
from pydantic import Field, TypeAdapter

from app.domain.models.event import Event, EventRecord, MessageEvent
from app.domain.models.message import TranscriptEntry
from app.domain.models.run import Checkpoint, TranscriptName

MAX_NUMBER = 2**32 - 1
"""Largest number of an event, and largest position in a transcript."""

USER, ASSISTANT = 1, 2
"""Stored values of an event's `speaker`, which only messages have."""

_SPEAKERS = {"user": USER, "assistant": ASSISTANT}
_TRANSCRIPTS: dict[TranscriptName, int] = {"planner": 0, "executor": 1}

_ENTRIES: TypeAdapter[list[TranscriptEntry]] = TypeAdapter(
    list[Annotated[TranscriptEntry, Field(discriminator="role")]]
)
_CHECKPOINT: TypeAdapter[Checkpoint] = TypeAdapter(Checkpoint)
_ANYTHING: TypeAdapter[object] = TypeAdapter(object)


def event_key(ordinal: int, number: int) -> int:
    """Return the key of an event. All keys of a session are adjacent, in the order of the event numbers."""
    return ordinal << 32 | min(max(number, 0), MAX_NUMBER)


def transcript_key(ordinal: int, transcript: TranscriptName, position: int) -> int:
    """Return the key of the message at `position` (from 1) of a transcript."""
    return ordinal << 33 | _TRANSCRIPTS[transcript] << 32 | position


def event_keys(ordinal: int) -> tuple[int, int]:
    """Return the first key of the session's events, and the first key after them."""
    return ordinal << 32, ordinal + 1 << 32


def transcript_keys(ordinal: int) -> tuple[int, int]:
    """Return the first key of the session's transcripts, and the first key after them."""
    return ordinal << 33, ordinal + 1 << 33


def speaker_of(event: Event) -> int | None:
    """Return the stored `speaker` of an event; None if the event is not a message."""
    return _SPEAKERS[event.role] if isinstance(event, MessageEvent) else None


def well_formed(text: str) -> str:
    """Return `text` without lone surrogates, which no database stores: join pairs, replace others by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encode_message(message: TranscriptEntry) -> bytes:
    """Return an entry of a transcript as JSON."""
    return _dumps(message)


def decode_messages(rows: Sequence[bytes]) -> list[TranscriptEntry]:
    """Return the entries that `encode_message` encoded, in the order of `rows`."""
    return _ENTRIES.validate_json(b"[%b]" % b",".join(rows))


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as JSON."""
    return _dumps(checkpoint)


def decode_checkpoint(row: bytes | None, *, model: str, given_title: str, title: str, origin: str) -> Checkpoint:
    """Return the checkpoint that `encode_checkpoint` encoded, or a new one for None, with what the session chose."""
    checkpoint = Checkpoint() if row is None else _CHECKPOINT.validate_json(row)
    return replace(checkpoint, model=model, given_title=given_title, title=title, origin=origin)


def _dumps(value: TranscriptEntry | Checkpoint) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # A model's arguments may hold lone surrogates, or integers of more than 64 bits.
        plain = _ANYTHING.dump_python(value)
        return well_formed(json.dumps(plain, ensure_ascii=False, default=_plain)).encode()


def _plain(value: object) -> object:
    return dict(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else str(value)


def take(records: Iterable[EventRecord], max_bytes: int | None) -> list[EventRecord]:
    """Return the records up to the one with which their data reaches `max_bytes`; all of them for None."""
    if max_bytes is None:
        return list(records)
    taken: list[EventRecord] = []
    size = 0
    for record in records:
        taken.append(record)
        size += len(record.data)
        if size >= max_bytes:
            break
    return taken
