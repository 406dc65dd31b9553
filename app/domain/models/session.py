"""A session: a conversation with its own sandbox."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.domain.models.event import (
    DoneEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    PlanEvent,
    StepEvent,
    TitleEvent,
    ToolCalledEvent,
    ToolCallingEvent,
    WaitEvent,
)

SessionStatus = Literal["pending", "active", "waiting", "completed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What is known of a session without reading its events. Times are whole seconds since the epoch, UTC."""

    id: str
    owner: str
    title: str
    status: SessionStatus
    latest_message: str
    latest_message_at: int | None
    unread_count: int
    created_at: int
    last_event_number: int
    """Number of the newest event; 0 when there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """One page of sessions, latest first; `next_cursor` is None on the last."""

    sessions: tuple[Session, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChanges:
    """What a batch of events changes in its session's summary; None leaves a field as it is."""

    title: str | None = None
    status: SessionStatus | None = None
    latest_message: str | None = None
    assistant_messages: int = 0
    user_messages: int = 0


def changes_of(events: Sequence[Event]) -> SessionChanges:
    """Fold `events`, in order, into the change of the session's summary. Every store uses this one fold."""
    title: str | None = None
    status: SessionStatus | None = None
    latest: str | None = None
    spoken = {"assistant": 0, "user": 0}
    for event in events:
        match event:
            case MessageEvent():
                latest = event.content
                spoken[event.role] += 1
                status = "active" if event.role == "user" else status
            case TitleEvent():
                title = event.title
            case WaitEvent():
                status = "waiting"
            case ErrorEvent() | DoneEvent():
                status = "completed"
            case PlanEvent() | StepEvent() | ToolCallingEvent() | ToolCalledEvent():
                pass
    return SessionChanges(
        title=title,
        status=status,
        latest_message=latest,
        assistant_messages=spoken["assistant"],
        user_messages=spoken["user"],
    )
