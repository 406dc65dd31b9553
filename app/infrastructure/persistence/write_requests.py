"""Group commit, alike in both stores: requests that wait are written together, and each caller gets its own result."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.domain.errors import AnkerError, NotFound, StoreUnavailable
from app.domain.models.event import EventRecord

R = TypeVar("R")
T = TypeVar("T")

OnCommitted = Callable[[str, Sequence[EventRecord]], None]
"""Callback on the event loop for a session's newly stored events, called in the order of their numbers."""

CommittedEvents = tuple[str, Sequence[EventRecord]]
"""Id of a session, and events of one write to it."""


@dataclass(frozen=True, slots=True)
class PendingWrite(Generic[R]):
    """A request, and the future that its caller waits for."""

    request: R
    result: asyncio.Future[Any]


Outcome = object
"""Result of a request, or the exception that refused it."""


def attempt(work: Callable[[], object]) -> Outcome:
    """Return the result of `work`, or the exception that belongs to its own request.

    Such a request is refused before it changes anything, so the requests around it are still written.
    """
    try:
        return work()
    except (AnkerError, TypeError, ValueError, RecursionError) as refusal:
        return refusal


def settle(
    pending: Sequence[PendingWrite[R]],
    outcomes: Sequence[Outcome],
    committed: Iterable[CommittedEvents],
    on_committed: OnCommitted,
) -> None:
    """Announce the stored events, then give each caller its outcome. `outcomes` may be shorter than `pending`."""
    loop = asyncio.get_running_loop()
    for session_id, records in committed:
        # The loop calls it before it wakes the callers below, and an exception in it reaches only the loop's handler.
        loop.call_soon(on_committed, session_id, records)
    for write, outcome in zip(pending, outcomes, strict=False):
        if isinstance(outcome, Exception):
            fail(write, outcome)
        elif not write.result.done():
            write.result.set_result(outcome)


def fail(write: PendingWrite[R], failure: Exception) -> None:
    """Raise `failure` in the caller, as an exception of its own: a shared one would collect all their tracebacks."""
    if write.result.done():
        return
    if isinstance(failure, StoreUnavailable):
        failure = type(failure)(str(failure), retry_after=failure.retry_after)
    elif type(failure) is NotFound:
        failure = NotFound(str(failure))
    write.result.set_exception(failure)
