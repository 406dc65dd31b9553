"""Port: masks the service's own secrets in texts, and in what contains texts."""

from typing import Protocol, TypeVar

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

    def mask(self, value: T) -> T:
        """Return `value` with each secret replaced in every text in it, also in the forms in which programs encode it.

        A value is a text, or dataclasses, mappings, lists and tuples that contain texts, also as keys. Pictures are
        left alone. If there is nothing to mask, the same object is returned.
        """
        ...

    def stream(self) -> MaskedStream:
        """Return a new stream, for one text."""
        ...


class NoSecrets:
    """A `SecretMask`, and its stream, that knows no secrets."""

    def mask(self, value: T) -> T:
        """Return `value` unchanged."""
        return value

    def stream(self) -> MaskedStream:
        """Return a stream that changes nothing."""
        return self

    def feed(self, piece: str) -> str:
        """Return `piece` unchanged."""
        return piece

    def flush(self) -> str:
        """Return nothing: nothing is held back."""
        return ""
