"""Port: masks the service's own secrets in text. `masked` and `MaskedEventLog` apply it to what contains text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256
from typing import Protocol, TypeVar, cast

from app.domain.models.event import EventRecord
from app.domain.models.message import TranscriptEntry
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.models.tool import Image
from app.domain.repositories.event_log import Commit, EventLog, StoredMessage, UnreadMessage

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

    def may_be_in(self, value: object) -> bool:
        """Return whether a text in `value` may contain a secret. This is much faster than to mask each text."""
        ...


class NoSecrets:
    """A `SecretMask`, and its stream, that knows no secrets."""

    def mask(self, text: str) -> str:
        """Return `text` unchanged."""
        return text

    def stream(self) -> MaskedStream:
        """Return a stream that changes nothing."""
        return self

    def may_be_in(self, value: object) -> bool:
        """Return False."""
        return False

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
    return cast("T", _masked(value, mask)) if mask.may_be_in(value) else value


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


@dataclass(frozen=True, slots=True)
class MaskedEventLog:
    """The `EventLog` `inner`, behind `mask`. Every write of a session passes here, whoever makes it."""

    inner: EventLog
    mask: SecretMask

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Implement `EventLog.commit`."""
        return await self.inner.commit(session_id, masked(commit, self.mask))

    async def append_user_message(
        self,
        session_id: str,
        content: str,
        *,
        at: int,
        key: str | None,
        model: str | None = None,
        origin: str = "",
    ) -> StoredMessage:
        """Implement `EventLog.append_user_message`."""
        key = None if key is None else self._masked_key(key)
        return await self.inner.append_user_message(
            session_id, self.mask.mask(content), at=at, key=key, model=model, origin=origin
        )

    async def find_message(self, session_id: str, key: str) -> int | None:
        """Implement `EventLog.find_message`."""
        return await self.inner.find_message(session_id, self._masked_key(key))

    async def tokens_of_owner(self, session_id: str, *, day: int) -> int:
        """Implement `EventLog.tokens_of_owner`."""
        return await self.inner.tokens_of_owner(session_id, day=day)

    async def rename_session(self, session_id: str, title: str, *, at: int) -> None:
        """Implement `EventLog.rename_session`."""
        await self.inner.rename_session(session_id, self.mask.mask(title), at=at)

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        """Implement `EventLog.read`."""
        return await self.inner.read(session_id, after=after, limit=limit, max_bytes=max_bytes)

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """Implement `EventLog.unread_messages`."""
        return await self.inner.unread_messages(session_id, after=after)

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """Implement `EventLog.load_checkpoint`."""
        return await self.inner.load_checkpoint(session_id)

    async def load_transcript(
        self, session_id: str, transcript: TranscriptName, *, after: int = 0, limit: int | None = None
    ) -> Sequence[TranscriptEntry]:
        """Implement `EventLog.load_transcript`."""
        return await self.inner.load_transcript(session_id, transcript, after=after, limit=limit)

    def _masked_key(self, key: str) -> str:
        if self.mask.mask(key) == key:
            return key
        return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()  # two masked keys must differ
