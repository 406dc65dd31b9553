"""The integer keys of the rows: every session's rows lie together and in order, in every store."""

from app.domain.models.event import Event, MessageEvent
from app.domain.models.run import TranscriptName

LAST_NUMBER = 2**32 - 1
"""The largest number of an event, and the largest position in a transcript."""

USER, ASSISTANT = 1, 2
"""Who speaks in an event (column `speaker`)."""

_SPEAKERS = {"user": USER, "assistant": ASSISTANT}
_THREADS: dict[TranscriptName, int] = {"planner": 0, "executor": 1}


def event_key(ordinal: int, number: int) -> int:
    """The key of a session's event."""
    return ordinal << 32 | min(max(number, 0), LAST_NUMBER)


def transcript_key(ordinal: int, thread: TranscriptName, position: int) -> int:
    """The key of a message at `position` (from 1) in a session's transcript."""
    return ordinal << 33 | _THREADS[thread] << 32 | position


def speaker_of(event: Event) -> int | None:
    """Who speaks in `event`; None when it is no message."""
    return _SPEAKERS[event.role] if isinstance(event, MessageEvent) else None
