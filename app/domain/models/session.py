"""A session: a conversation with its own sandbox."""

from collections.abc import Iterable
from dataclasses import dataclass

from app.domain.models.event import Event, SessionChanges, SessionStatus
from app.domain.models.message import Usage

MAX_TITLE = 80
"""Maximum length of a title that the agent or the first message gives a session, in characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The summary of a session, which is stored beside its events. Times are whole seconds since the epoch, UTC."""

    id: str
    owner: str
    title: str
    status: SessionStatus
    latest_message: str
    latest_message_at: int | None
    unread_count: int
    created_at: int
    last_event_number: int
    """Number of the newest event, or 0 when there is none."""
    model: str = ""
    """Name of the model profile that the user chose; empty for the default."""
    is_pinned: bool = False
    usage: Usage = Usage()
    """Model calls and tokens of all runs, and what they cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """A page of sessions, latest first. `next_cursor` is None on the last page."""

    sessions: tuple[Session, ...]
    next_cursor: str | None


def title_of(text: str) -> str:
    """Return a title made from `text`: its first line with characters to show, bounded; empty if it has none."""
    title = " ".join(text.lstrip().partition("\n")[0].split())
    return title if len(title) <= MAX_TITLE else title[: MAX_TITLE - 1].rstrip() + "…"


def changes_of(events: Iterable[Event]) -> SessionChanges:
    """Combine the changes that `events` make, in order, to the summary of their session."""
    title: str | None = None
    status: SessionStatus | None = None
    latest: str | None = None
    assistant = user = 0
    for changes in (event.session_changes() for event in events):
        title = title if changes.title is None else changes.title
        status = changes.status or status
        latest = latest if changes.latest_message is None else changes.latest_message
        assistant += changes.assistant_messages
        user += changes.user_messages
    return SessionChanges(
        title=title, status=status, latest_message=latest, assistant_messages=assistant, user_messages=user
    )
