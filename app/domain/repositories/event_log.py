"""Port of storage: a session's event_log. Events, transcripts and run state of a change are written together or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.domain.errors import StaleCheckpoint
from app.domain.models.event import Event, EventRecord
from app.domain.models.message import Message, Usage
from app.domain.models.run import Checkpoint, TranscriptName


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One atomic write of a session's run. The store writes all of it or nothing."""

    timestamp: int
    """Time of the events, in whole seconds since the epoch, UTC."""
    events: Sequence[Event] = ()
    messages: Sequence[tuple[TranscriptName, Message]] = ()
    """Messages to append to the transcripts, in order."""
    checkpoint: Checkpoint | None = None
    usage: Usage | None = None
    ends_after_message: int | None = None
    """Set by a commit that ends the run: the number of the newest user message that the run has read.

    If a newer user message is stored, the store refuses the commit with `Superseded`.
    """
    fencing_token: int | None = None
    """Token of the lease that the writer holds; None where one process owns the store.

    If the session has been leased again since, the store refuses the commit with `LeaseLost`.
    """
    expected_revision: str | None = None
    """Revision of the checkpoint that this commit follows. It makes the commit safe to repeat.

    If the stored revision is the expected one, the commit is written. If it is the revision of `checkpoint`, an
    earlier call has written this commit, and nothing is written again. Otherwise the store refuses the commit with
    `StaleCheckpoint`. None skips the check.
    """

    def is_already_stored(self, stored: str) -> bool:
        """Whether an earlier call wrote this very change. `stored`: the revision of the checkpoint that is stored.

        Raises:
            StaleCheckpoint: it neither was, nor may it be written now.
        """
        if self.expected_revision is None or self.expected_revision == stored:
            return False
        if self.checkpoint is None or self.checkpoint.revision != stored:
            raise StaleCheckpoint("the run stands elsewhere than its worker believed")
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A stored user message: its number, and whether this very call stored it (False: the key was known)."""

    number: int
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadMessage:
    """A user message that a run has yet to read."""

    number: int
    content: str


class EventLog(Protocol):
    """The append-only record of every session. Numbers run from 1 without gaps, per session.

    Once a method returns, what it wrote survives the death of the process. Cancelling a waiting caller does not undo
    the write.

    Raises (every method):
        NotFound: the session does not exist (any more).
        StoreUnavailable: the store cannot be reached or is full. Nothing was written, or, when the connection broke in
            the middle of it, all of it: read before going on.
    """

    async def commit(self, session_id: str, change: Commit) -> Sequence[EventRecord]:
        """Write `change` and answer its stored events; none when an earlier call had written this very change.

        Raises:
            Superseded: see `Commit.ends_after_message`.
            LeaseLost: see `Commit.fencing_token`.
            StaleCheckpoint: see `Commit.expected_revision`.
            TooLarge: more than the store takes at once; no run writes so much.
        """
        ...

    async def append_user_message(self, session_id: str, content: str, *, at: int, key: str | None) -> StoredMessage:
        """Store a user message. The same `key` twice in a session is one message."""
        ...

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        """At most `limit` events with a number above `after`, in order."""
        ...

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """The user's messages with a number above `after`, in order."""
        ...

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """The newest checkpoint; a fresh `Checkpoint` when there is none."""
        ...

    async def load_transcript(self, session_id: str, thread: TranscriptName) -> Sequence[Message]:
        """Everything said in `thread`, in order."""
        ...
