"""The part of a session that every write needs, kept in memory for the sessions in use."""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from app.domain.errors import NotFound
from app.domain.models.message import Usage

_CAPACITY = 1024
"""Sessions in use at once; one that was evicted costs a look-up at its next write."""

_SELECT = """
SELECT ordinal, id, owner, title, status, latest_message, latest_message_at, touched, head, last_words, delivered,
       unread, talk, work, coalesce(revision, ''), prompt_tokens, cached_tokens, completion_tokens, calls
FROM sessions LEFT JOIN runs ON runs.session = ordinal WHERE id = ?
"""

_UPDATE_COUNTERS = """
UPDATE sessions SET head = ?, last_words = ?, delivered = ?, unread = ?, talk = ?, work = ?,
       prompt_tokens = ?, cached_tokens = ?, completion_tokens = ?, calls = ?
WHERE ordinal = ?
"""

_UPDATE_SUMMARY = """
UPDATE sessions SET title = ?, status = ?, latest_message = ?, latest_message_at = ?, touched = ? WHERE ordinal = ?
"""


@dataclass(slots=True)
class Head:
    """Where a session stands: its summary, the numbers of its newest events, the lengths of its transcripts."""

    ordinal: int
    id: str
    owner: str
    title: str
    status: str
    latest_message: str
    latest_message_at: int | None
    touched: int
    head: int
    last_words: int
    delivered: int
    unread: int
    talk: int
    work: int
    revision: str
    """Of the checkpoint."""
    usage: Usage
    summary_changed: bool = False


class Heads:
    """A bounded cache of heads. Lives on the writing thread."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, Head] = OrderedDict()

    def get(self, connection: sqlite3.Connection, session_id: str) -> Head:
        """The session's head, from memory or from the database.

        Raises:
            NotFound: there is no such session.
        """
        head = self._heads.get(session_id)
        if head is not None:
            self._heads.move_to_end(session_id)
            return head
        row = connection.execute(_SELECT, (session_id,)).fetchone()
        if row is None:
            raise NotFound("no such session")
        usage = Usage(prompt_tokens=row[15], cached_tokens=row[16], completion_tokens=row[17], calls=row[18])
        head = self._heads[session_id] = Head(*row[:15], usage=usage)
        return head

    def forget(self, session_id: str) -> None:
        """The session changed behind the cache, or is gone."""
        self._heads.pop(session_id, None)

    def trim(self) -> None:
        """Back to the capacity; only between transactions, when every head is as in the database."""
        while len(self._heads) > _CAPACITY:
            self._heads.popitem(last=False)


def save(connection: sqlite3.Connection, heads: Iterable[Head]) -> None:
    """Write the heads that a transaction changed."""
    changed = list(heads)
    # Apart, because the summary is what the indexes of the list hang on and most writes leave it alone.
    summaries = [head for head in changed if head.summary_changed]
    if summaries:
        connection.executemany(_UPDATE_SUMMARY, map(_summary_row, summaries))
        for head in summaries:
            head.summary_changed = False
    connection.executemany(_UPDATE_COUNTERS, map(_counters_row, changed))


def _summary_row(head: Head) -> tuple[object, ...]:
    return (head.title, head.status, head.latest_message, head.latest_message_at, head.touched, head.ordinal)


def _counters_row(head: Head) -> tuple[object, ...]:
    usage = head.usage
    return (
        head.head,
        head.last_words,
        head.delivered,
        head.unread,
        head.talk,
        head.work,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        usage.calls,
        head.ordinal,
    )
