"""Port of storage: the sessions themselves. Never reads events."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from app.domain.models.message import Usage
from app.domain.models.session import Session, SessionPage


class SessionRepository(Protocol):
    """Sessions, each belonging to one owner.

    Raises (every method):
        NotFound: no such session, or it is somebody else's.
        StoreUnavailable: the store cannot be reached or is full; nothing was written.
    """

    async def create(self, session_id: str, *, owner: str, at: int) -> None:
        """A new session with status `pending`. `at`: whole seconds since the epoch, UTC."""
        ...

    async def get(self, session_id: str, *, owner: str) -> Session:
        """One session."""
        ...

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """The owner's sessions, latest activity first.

        Raises:
            InvalidInput: `cursor` is none of ours.
        """
        ...

    async def list_active(self) -> Sequence[str]:
        """The ids of all sessions whose status is `active`: a run is, or should be, going."""
        ...

    async def list_ids(self) -> Sequence[str]:
        """The ids of all sessions, whoever owns them."""
        ...

    async def last_event_numbers(self, session_ids: Sequence[str]) -> Mapping[str, int]:
        """The number of the newest event of each of these sessions, 0 while there is none; those that do not exist
        are left out. One cheap look, however many."""
        ...

    async def mark_delivered(self, session_id: str, *, number: int) -> bool:
        """A chat stream delivered every event up to `number`; answers whether that made anything read."""
        ...

    async def usage(self, session_id: str) -> Usage:
        """What the model has cost in this session."""
        ...

    async def delete(self, session_id: str, *, owner: str) -> None:
        """The session, its events, transcripts and run state are gone."""
        ...

    async def check(self) -> str | None:
        """Why the store cannot be used now; None when it can."""
        ...
