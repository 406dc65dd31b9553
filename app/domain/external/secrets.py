"""Port: masks the service's own secrets in text, and in the events and messages that contain it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Protocol, TypeVar, cast

from app.domain.models.tool import Image

T = TypeVar("T")


class MaskedStream(Protocol):
    """Masks a text that arrives in pieces. What it returns, joined, is the mask of the joined pieces."""

    def feed(self, piece: str) -> str:
        """Return what can be shown now. The rest may be the beginning of a secret and is held back."""
        ...

    def flush(self) -> str:
        """Return what is held back: the text is complete."""
        ...


class SecretMask(Protocol):
    """Knows the values of the service's own secrets."""

    def mask(self, text: str) -> str:
        """Return `text` with each secret replaced, also in the forms in which programs encode it."""
        ...

    def stream(self) -> MaskedStream:
        """Return a new stream, for one text."""
        ...


class NoSecrets:
    """A `SecretMask`, and its stream, that knows no secrets."""

    def mask(self, text: str) -> str:
        """Return `text` unchanged."""
        return text

    def stream(self) -> MaskedStream:
        """Return a stream that changes nothing."""
        return self

    def feed(self, piece: str) -> str:
        """Return `piece` unchanged."""
        return piece

    def flush(self) -> str:
        """Return nothing: nothing is held back."""
        return ""


def masked(value: T, mask: SecretMask) -> T:
    """Return `value` with every text in it masked: in dataclasses, mappings, lists and tuples, keys included.

    Return the same object if there is nothing to mask. Pictures are left alone: they are no text.
    """
    return cast("T", _masked(value, mask))


def _masked(value: object, mask: SecretMask) -> object:
    match value:
        case str():
            return mask.mask(value)
        case None | bool() | int() | float() | Image():
            return value
        case Mapping():
            items = cast("Mapping[object, object]", value)
            new = {_masked(key, mask): _masked(item, mask) for key, item in items.items()}
            return items if all(new.get(key) is item for key, item in items.items()) else new
        case list() | tuple():
            before = cast("Sequence[object]", value)
            after = [_masked(item, mask) for item in before]
            if all(old is new for old, new in zip(before, after, strict=True)):
                return before
            return tuple(after) if isinstance(value, tuple) else after
        case _ if is_dataclass(value) and not isinstance(value, type):
            changes = {
                field.name: new
                for field in fields(value)
                if field.init and (new := _masked(old := getattr(value, field.name), mask)) is not old
            }
            return replace(value, **changes) if changes else value
        case _:
            return value
