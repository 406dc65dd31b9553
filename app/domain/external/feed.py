"""Port: the wake-up of whoever follows a session. A hint, never the truth: what matters is read from the event_log."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.domain.models.event import EventRecord, TextDelta


class Subscription(Protocol):
    """One reader's place at a session's feed. It holds a position, not a queue: a slow reader costs no memory."""

    def records_after(self, number: int) -> Sequence[EventRecord] | None:
        """The records after `number` that are still in memory, in order; None when the event_log must be asked."""
        ...

    def next_delta(self) -> TextDelta | None:
        """What was added, since the last call, to the message that is being written; None when there is nothing.

        Pieces that a reader was too slow to take come joined into one.
        """
        ...

    async def wait_for_change(self) -> bool:
        """Wait until there may be something new. False: the session was deleted or the service is shutting down."""
        ...


class Feed(Protocol):
    """Tells followers of a session that there is something new, and followers of the list that it changed."""

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """`records` were stored. Called in the order of their numbers."""
        ...

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """The agent is writing `delta` of a message that will be stored as a whole later."""
        ...

    def end_delta(self, session_id: str) -> None:
        """Nothing more will come of the message that is being written (it is stored now, or was given up)."""
        ...

    def notify_list_changed(self) -> None:
        """The list of sessions changed in another way than by an event: created, deleted, read."""
        ...

    def close_session(self, session_id: str) -> None:
        """The session was deleted: its followers end."""
        ...

    def subscribe(self, session_id: str) -> AbstractAsyncContextManager[Subscription]:
        """Follow one session."""
        ...

    async def sessions_changed(self, seen: int) -> int | None:
        """Wait until the version of the list of sessions is above `seen` (0 at first), and answer it.

        None: the service is shutting down.
        """
        ...

    def close(self) -> None:
        """Shut down: every follower ends."""
        ...
