"""Whether a majority follows the primary: it goes on answering, and reading, for ten seconds after it lost them."""

from typing import NamedTuple

from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.driver import NOBODY, Failure

_STALLED_SECONDS = 2.0
"""How long what the primary has written may be with too few of the others."""

ALONE = Failure("no majority of the servers answers", lost=True)
NEW = Failure("the new primary is not yet followed by a majority", lost=True)


class _Place(NamedTuple):
    """In the log that all members share. A term is one primary's time in office."""

    term: int
    second: int
    step: int


class Majority:
    """Judges what a primary says of itself, look after look. Costs the servers nothing: nothing is written for it."""

    def __init__(self) -> None:
        self._unconfirmed: tuple[_Place, float] | None = None
        """Something that had not reached a majority, and when that was seen first."""

    def trouble(self, hello: Document, *, now: float) -> Failure | None:
        """What is wrong, if anything, with a server that answered `hello` at `now`, on the monotonic clock.

        A primary that a majority does not follow yet is no good either: until it is, reads of what a majority has may
        show less than was shown before, by the primary that it replaces.
        """
        if hello.get("isWritablePrimary") is False:
            return NOBODY
        written = hello.get("lastWrite", {})
        if "majorityOpTime" not in written:
            return None  # a router: it looks at its servers itself
        newest, confirmed = _place(written["opTime"]), _place(written["majorityOpTime"])
        if confirmed.term < newest.term:
            return NEW
        if self._unconfirmed is None or self._unconfirmed[0] <= confirmed:
            self._unconfirmed = None if newest <= confirmed else (newest, now)
        elif now - self._unconfirmed[1] >= _STALLED_SECONDS:
            return ALONE
        return None


def _place(optime: Document) -> _Place:
    return _Place(int(optime["t"]), optime["ts"].time, optime["ts"].inc)
