"""Port of storage: a session's journal. Events, transcripts and run state of a change are written together or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.domain.errors import Outdated
from app.domain.models.event import Event, EventRecord
from app.domain.models.message import Message, Usage
from app.domain.models.run import RunState, Thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One atomic change of a session.

    `at` is the time of its events, whole seconds since the epoch, UTC. `said` goes to the end of its transcripts.
    `ends_after`: the change ends a run that has read the user's messages up to this number; when a newer user message
    is already stored the whole change is refused with `Superseded`. `fence`: the token of the lease under which it is
    written; when the session has been leased anew since, the whole change is refused with `LeaseLost`. None: written
    under no lease, where the store has only one process. `follows`: the revision of the checkpoint that `run` goes on
    from, which makes the change safe to repeat: it is written if that is the stored one, not again if `run` already is
    (by its revision), and else refused with `Outdated`. None: written whatever is stored.
    """

    at: int
    events: Sequence[Event] = ()
    said: Sequence[tuple[Thread, Message]] = ()
    run: RunState | None = None
    usage: Usage | None = None
    ends_after: int | None = None
    fence: int | None = None
    follows: str | None = None

    def was_written(self, stored: str) -> bool:
        """Whether an earlier call wrote this very change. `stored`: the revision of the checkpoint that is stored.

        Raises:
            Outdated: it neither was, nor may it be written now.
        """
        if self.follows is None or self.follows == stored:
            return False
        if self.run is None or self.run.revision != stored:
            raise Outdated("the run stands elsewhere than its worker believed")
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A stored user message: its number, and whether this very call stored it (False: the key was known)."""

    number: int
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UserWords:
    """A user message that a run has yet to read."""

    number: int
    content: str


class Journal(Protocol):
    """The append-only record of every session. Numbers run from 1 without gaps, per session.

    Once a method returns, what it wrote survives the death of the process. Cancelling a waiting caller does not undo
    the write.

    Raises (every method):
        NotFound: the session does not exist (any more).
        StoreUnavailable: the store cannot be reached or is full. Nothing was written, or, when the connection broke in
            the middle of it, all of it: read before going on.
    """

    async def commit(self, session_id: str, change: Change) -> Sequence[EventRecord]:
        """Write `change` and answer its stored events; none when an earlier call had written this very change.

        Raises:
            Superseded: see `Change.ends_after`.
            LeaseLost: see `Change.fence`.
            Outdated: see `Change.follows`.
            TooLarge: more than the store takes at once; no run writes so much.
        """
        ...

    async def receive(self, session_id: str, content: str, *, at: int, key: str | None) -> Receipt:
        """Store a user message. The same `key` twice in a session is one message."""
        ...

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[EventRecord]:
        """At most `limit` events with a number above `after`, in order."""
        ...

    async def unread_words(self, session_id: str, *, after: int) -> Sequence[UserWords]:
        """The user's messages with a number above `after`, in order."""
        ...

    async def run_state(self, session_id: str) -> RunState:
        """The newest checkpoint; a fresh `RunState` when there is none."""
        ...

    async def transcript(self, session_id: str, thread: Thread) -> Sequence[Message]:
        """Everything said in `thread`, in order."""
        ...
