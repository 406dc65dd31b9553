"""Messages and checkpoints as rows: JSON, written from the domain's own dataclasses and read back into them.

A row that was written once loads for ever: fields that are new have defaults, fields that are gone are ignored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, cast

import orjson
from pydantic import Field, TypeAdapter

from app.domain.models.message import Message
from app.domain.models.run import Checkpoint
from app.infrastructure.persistence.listing import well_formed

_MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Annotated[Message, Field(discriminator="role")]])
_RUN: TypeAdapter[Checkpoint] = TypeAdapter(Checkpoint)
_ANYTHING: TypeAdapter[object] = TypeAdapter(object)


def encode_message(message: Message) -> bytes:
    """One message of a transcript as JSON."""
    return _dumps(message)


def decode_messages(rows: Sequence[bytes]) -> list[Message]:
    """The messages of a transcript, in the order of `rows`."""
    return _MESSAGES.validate_json(b"[%b]" % b",".join(rows))


def encode_run(state: Checkpoint) -> bytes:
    """A checkpoint as JSON."""
    return _dumps(state)


def decode_run(row: bytes) -> Checkpoint:
    """The checkpoint that `encode_run` wrote."""
    return _RUN.validate_json(row)


def _dumps(value: Message | Checkpoint) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        # Lone surrogates or integers of more than 64 bits, from a model's arguments.
        plain = _ANYTHING.dump_python(value)
        return well_formed(json.dumps(plain, ensure_ascii=False, default=_plain)).encode()


def _plain(value: object) -> object:
    return dict(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else str(value)
