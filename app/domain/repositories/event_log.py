"""Storage port: the event log of a session, with its transcripts and its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.domain.errors import StaleCheckpoint
from app.domain.models.event import Event, EventRecord
from app.domain.models.message import TranscriptEntry, Usage
from app.domain.models.run import Checkpoint, TranscriptName


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One atomic write of a session's run. The store writes all of it or nothing."""

    timestamp: int
    """Time of the events, in whole seconds since the epoch, UTC."""
    events: Sequence[Event] = ()
    messages: Sequence[tuple[TranscriptName, TranscriptEntry]] = ()
    """Entries to append to the transcripts, in order."""
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

    def is_already_stored(self, stored_revision: str) -> bool:
        """Return whether an earlier call wrote this very commit.

        Args:
            stored_revision: Revision of the stored checkpoint; empty when there is none.

        Raises:
            StaleCheckpoint: The commit is not stored, and it follows another checkpoint than the stored one.
        """
        if self.expected_revision is None or self.expected_revision == stored_revision:
            return False
        if self.checkpoint is None or self.checkpoint.revision != stored_revision:
            raise StaleCheckpoint("another write changed the checkpoint: load it and continue from there")
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """Result of storing a user message."""

    number: int
    """Event number of the message."""
    is_new: bool
    """Whether this call stored it; False when an earlier call with the same key did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadMessage:
    """A user message that the run has not read yet."""

    number: int
    content: str


class EventLog(Protocol):
    """The append-only record of every session. Events are numbered per session, from 1 and without gaps.

    A write survives the death of the process once the method has returned. Cancelling a caller that waits does not
    undo the write.

    Every method raises:
        NotFound: The session does not exist, or does not exist any more.
        StoreUnavailable: The store cannot be reached or is full. A write was not stored; if the connection broke
            during the write, it may have been stored completely. Read before you continue.
    """

    async def commit(self, session_id: str, commit: Commit) -> Sequence[EventRecord]:
        """Write `commit` and return its stored events; return none if an earlier call wrote this very commit.

        Raises:
            Superseded: See `Commit.ends_after_message`.
            LeaseLost: See `Commit.fencing_token`.
            StaleCheckpoint: See `Commit.expected_revision`.
            TooLarge: The commit has more bytes than the store takes at once. No run writes that much.
        """
        ...

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
        """Store a user message. A session without a title gets one from its words.

        Args:
            session_id: Session that the message belongs to.
            content: Text of the message.
            at: Time of the message, in whole seconds since the epoch, UTC.
            key: Idempotency key. A repeated key stores nothing; the result names the message stored before.
            model: Name of the model profile that the session uses from this message on; None to leave it as it is.
            origin: Where the message came from, for metrics and traces: see `Checkpoint.origin`.
        """
        ...

    async def find_message(self, session_id: str, key: str) -> int | None:
        """Return the event number of the user message that was stored with an idempotency key, or None."""
        ...

    async def tokens_of_owner(self, session_id: str, *, day: int) -> int:
        """Return how many tokens all runs of the session's owner have used since the beginning of a day.

        Commits count on the day of their timestamp, also those of sessions that were deleted since. After a crash of
        the process or an outage of the store, the newest commit may be missing.

        Args:
            session_id: A session of the owner.
            day: Number of days since the epoch, UTC. Earlier days than that of the newest commit are not known.
        """
        ...

    async def rename_session(self, session_id: str, title: str, *, at: int) -> None:
        """Store the title that the user gives the session, with a `title` event. The agent then names it no more.

        Args:
            session_id: Session to rename.
            title: Its new title, not empty.
            at: Time of the event, in whole seconds since the epoch, UTC.
        """
        ...

    async def read(
        self, session_id: str, *, after: int, limit: int, max_bytes: int | None = None
    ) -> Sequence[EventRecord]:
        """Return up to `limit` events with a number above `after`, in order.

        With `max_bytes`, the event with which their data reaches that size is the last one.
        """
        ...

    async def unread_messages(self, session_id: str, *, after: int) -> Sequence[UnreadMessage]:
        """Return the user's messages with a number above `after`, in order."""
        ...

    async def load_checkpoint(self, session_id: str) -> Checkpoint:
        """Return the newest checkpoint, or a new `Checkpoint` if none is stored. Set what the session chose."""
        ...

    async def load_transcript(
        self, session_id: str, transcript: TranscriptName, *, after: int = 0, limit: int | None = None
    ) -> Sequence[TranscriptEntry]:
        """Return the entries of a transcript that follow its first `after` ones, in order; at most `limit` of them."""
        ...
