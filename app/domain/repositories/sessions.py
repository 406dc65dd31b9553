"""Storage port: the sessions. No method reads events."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from app.domain.models.session import Session, SessionPage


class SessionRepository(Protocol):
    """Sessions, each of which belongs to one owner.

    Every method raises:
        NotFound: The session does not exist, or belongs to another owner.
        StoreUnavailable: The store cannot be reached or is full; nothing was written.
    """

    async def create(self, session_id: str, *, owner: str, at: int, model: str = "", title: str = "") -> None:
        """Create a session with status `pending`.

        Args:
            session_id: Id of the session.
            owner: Owner of the session.
            at: Time of the creation, in whole seconds since the epoch, UTC.
            model: Name of its model profile; empty for the default.
            title: Its title; empty if the agent names it.

        Raises:
            Conflict: A session with this id exists.
        """
        ...

    async def get(self, session_id: str, *, owner: str) -> Session:
        """Return one session."""
        ...

    async def get_any(self, session_id: str) -> Session:
        """Return one session, whoever owns it."""
        ...

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """Return one page of the owner's sessions, latest activity first.

        Args:
            owner: Owner of the sessions.
            limit: Maximum number of sessions in the page.
            cursor: `next_cursor` of the previous page; None for the first page.

        Raises:
            InvalidInput: `cursor` does not come from an earlier page.
        """
        ...

    async def page_all(self, *, limit: int, cursor: str | None) -> SessionPage:
        """Return one page of the sessions of all owners, the newest by creation first.

        Raises:
            InvalidInput: `cursor` does not come from an earlier page.
        """
        ...

    async def assign_unowned(self, owner: str) -> int:
        """Give all sessions whose owner is empty to `owner`. Return how many there were."""
        ...

    async def count(self, *, owner: str, up_to: int, running_only: bool = False) -> int:
        """Return the number of the owner's sessions, of all or of those with status `running`; at most `up_to`."""
        ...

    async def list_active(self) -> Mapping[str, str]:
        """Return the owners of all sessions with status `running`, by session id, in the order of their creation.

        Each has a run, or needs one.
        """
        ...

    async def list_ids(self) -> Sequence[str]:
        """Return the ids of all sessions of all owners."""
        ...

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the newest event number of each session, in one query; 0 for a session without events.

        Sessions that do not exist are left out.
        """
        ...

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        """Record that a client received every event up to `number`. Return whether the unread count changed."""
        ...

    async def set_pinned(self, session_id: str, *, owner: str, is_pinned: bool) -> None:
        """Record whether the user pinned the session."""
        ...

    async def delete(self, session_id: str, *, owner: str) -> None:
        """Delete the session with its events, transcripts, checkpoint, screenshots and tickets."""
        ...

    async def check(self) -> str | None:
        """Return why the store cannot be used now, or None if it can."""
        ...
