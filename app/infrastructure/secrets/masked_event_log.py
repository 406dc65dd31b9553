"""An event log that stores no secret of the service."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from app.domain.external.secrets import SecretMask
from app.domain.models.event import EventRecord
from app.domain.models.message import TranscriptEntry
from app.domain.models.run import Checkpoint, TranscriptName
from app.domain.repositories.event_log import Commit, EventLog, StoredMessage, UnreadMessage


@dataclass(frozen=True, slots=True)
class MaskedEventLog:
    """The `EventLog` `inner`, behind `mask`. Every write of a session passes here, whoever makes it."""

    inner: EventLog
    mask: SecretMask

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Implement `EventLog.commit`."""
        return await self.inner.commit(session_id, self.mask.mask(commit))

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
