"""Port: wakes the subscribers of a session. The feed gives hints; the event log is the truth."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from app.domain.models.event import EventRecord, StatusDelta, TextDelta


class Subscription(Protocol):
    """One reader's position in a session's feed. It holds no queue, so a slow reader costs no memory."""

    def records_after(self, number: int) -> Sequence[EventRecord] | None:
        """Return the records after `number` in order, or None if the caller must read the event log."""
        ...

    def next_delta(self) -> TextDelta | StatusDelta | None:
        """Return what was published since the last call and is not stored, or None.

        Text added to the message being written is joined into one delta. Of several statuses, only the last one is
        returned, and none that was published before the subscription or that text or a record has followed.
        """
        ...

    async def wait_for_change(self) -> bool:
        """Wait until there may be something new.

        Returns:
            False if the session was deleted or the service is shutting down.
        """
        ...


class Feed(Protocol):
    """Notifies subscribers of a session of new events and text, and readers of the session list of changes."""

    def publish(self, session_id: str, records: Sequence[EventRecord]) -> None:
        """Notify subscribers of stored records. Call it in the order of their numbers."""
        ...

    def publish_delta(self, session_id: str, delta: TextDelta) -> None:
        """Notify subscribers of text added to a message that will be stored as a whole later."""
        ...

    def publish_status(self, session_id: str, status: StatusDelta) -> None:
        """Notify subscribers of what the run waits for."""
        ...

    def end_delta(self, session_id: str) -> None:
        """End the message being written: it was stored or given up."""
        ...

    def notify_list_changed(self) -> None:
        """Notify readers of the session list of a change without an event: a session was created, deleted or read."""
        ...

    def close_session(self, session_id: str) -> None:
        """End the subscriptions of a deleted session."""
        ...

    def subscribe(self, session_id: str) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to one session."""
        ...

    async def sessions_changed(self, seen: int) -> int | None:
        """Wait until the version of the session list is greater than `seen`, 0 at first, and return it.

        Returns:
            None if the service is shutting down.
        """
        ...

    def close(self) -> None:
        """End all subscriptions: the service is shutting down."""
        ...
