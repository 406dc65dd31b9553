"""The list of sessions: previews, pages and their cursors, alike in every store."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from app.domain.errors import InvalidInput
from app.domain.models.message import Usage
from app.domain.models.session import Session, SessionPage
from app.infrastructure.persistence.codec import well_formed

PREVIEW_CHARS = 1000
"""Maximum number of characters of the latest message in the list of sessions."""

USAGE_FIELDS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "calls", "cost")
"""Stored fields of a session's usage, named as those of `Usage`. `cost` has no value until a price is known."""

LISTED_FIELDS = (
    *("owner", "title", "status", "latest_message", "latest_message_at", "unread", "created_at", "last_event"),
    *("last_activity", "ordinal", "model", "is_pinned", *USAGE_FIELDS),
)
"""Stored fields of a session that `listed_session` needs."""

FIRST_CURSOR = f"0-{10**18 - 1}"
"""A cursor before the newest session, for pages that are ordered by ordinal alone."""

_CURSOR = re.compile(r"([0-9]{1,18})-([0-9]{1,18})", re.ASCII)
_MAX_TIMESTAMP = 10**12
"""Largest timestamp in seconds: some 30,000 years, and small enough for every database."""


class ListedSession(NamedTuple):
    """A session with the two values that the list is ordered by."""

    session: Session
    last_activity: int
    """Time of the latest message or of the creation, in seconds since the epoch, UTC."""
    ordinal: int
    """Number of the session by creation."""


def listed_session(session_id: str, values: Iterable[Any]) -> ListedSession:
    """Return a session from its id and the values of `LISTED_FIELDS`."""
    owner, title, status, latest_message, latest_message_at, unread, created_at, last_event, *others = values
    last_activity, ordinal, model, is_pinned, *usage = others
    session = Session(
        id=session_id,
        owner=owner,
        title=title,
        status=status,
        latest_message=latest_message,
        latest_message_at=latest_message_at,
        unread_count=unread,
        created_at=created_at,
        last_event_number=last_event,
        model=model,
        is_pinned=bool(is_pinned),
        usage=Usage(**dict(zip(USAGE_FIELDS, usage, strict=True))),
    )
    return ListedSession(session, last_activity, ordinal)


def preview(text: str) -> str:
    """Return the beginning of `text`, as the list of sessions shows it."""
    return well_formed(text[:PREVIEW_CHARS])


def page_of(found: Sequence[ListedSession], limit: int) -> SessionPage:
    """Return a page of `limit` sessions. `found` has one session more than that if there is a next page."""
    shown = found[: max(limit, 0)]
    has_next = len(found) > len(shown) and bool(shown)
    return SessionPage(
        sessions=tuple(listed.session for listed in shown),
        next_cursor=f"{shown[-1].last_activity}-{shown[-1].ordinal}" if has_next else None,
    )


def decode_cursor(cursor: str) -> tuple[int, int]:
    """Return the last activity and the ordinal of the session that a page ended with.

    Raises:
        InvalidInput: `cursor` does not come from `page_of`.
    """
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise InvalidInput("cursor: not one that this service gave out")
    return int(found[1]), int(found[2])


def check_timestamp(timestamp: int) -> None:
    """Refuse a timestamp that no clock shows; it must not reach a database.

    Raises:
        InvalidInput: `timestamp` is negative or absurdly large.
    """
    if not 0 <= timestamp <= _MAX_TIMESTAMP:
        raise InvalidInput("timestamp: must be whole seconds since the epoch")
