"""Writes, one session's after the other: each session in use has a lane, and what waits in it is written at once."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.domain.errors import AnkerError, NotFound, StoreUnavailable
from app.domain.models.event import EventRecord
from app.infrastructure.persistence.mongo.draft import Draft
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.ledger import Ledger, Slot

T = TypeVar("T")

OnCommitted = Callable[[str, Sequence[EventRecord]], None]
"""Called on the event loop with a session's id and its newly stored events, in the order of their numbers."""

_CAPACITY = 1024
"""Lanes that are kept although nothing waits in them; a write in one that was not costs a look-up."""

_BATCH = 64
"""Writes in one update at most, so that the first of them need not wait for ever more."""


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What one write answers its caller, and the events that it stored."""

    answer: T
    records: Sequence[EventRecord] = ()


@dataclass(frozen=True, slots=True)
class _Fold:
    done: "asyncio.Future[object]"
    work: "Callable[[Draft], Written[object]]"
    key: str | None


@dataclass(frozen=True, slots=True)
class _Alone:
    done: "asyncio.Future[object]"
    work: "Callable[[], Awaitable[object]]"
    forget: bool


@dataclass(slots=True)
class _Lane:
    slot: Slot = field(default_factory=Slot)
    pending: "deque[_Fold | _Alone]" = field(default_factory=deque["_Fold | _Alone"])
    task: "asyncio.Task[None] | None" = None


_Outcome = Written[object] | AnkerError | TypeError | ValueError | RecursionError


class Lanes:
    """The lanes of one process. A caller that is cancelled while waiting does not undo its write."""

    def __init__(self, gate: Gate, ledger: Ledger, on_committed: OnCommitted) -> None:
        self._gate = gate
        self._ledger = ledger
        self._on_committed = on_committed
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._closing = False

    def fold(
        self, session_id: str, work: Callable[[Draft], Written[T]], *, key: str | None = None
    ) -> "asyncio.Future[T]":
        """Put `work` into the session's next batch; the answer is there when that is stored. `key`: one it wants to
        know of.

        Raises, now or as the answer:
            StoreUnavailable: see `EventLog`.
            AnkerError: what `work` raised; nothing of it was written.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(session_id, _Fold(done, work, key))  # type: ignore[arg-type]
        return done

    def alone(self, session_id: str, work: Callable[[], Awaitable[T]], *, forget: bool) -> "asyncio.Future[T]":
        """Carry out `work` when everything before it is written, and before anything that comes after it.

        `forget`: it may change where the session stands, or whether there is one.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(session_id, _Alone(done, work, forget))  # type: ignore[arg-type]
        return done

    def refuse_waiting(self, failure: StoreUnavailable) -> None:
        """Refuse every write that has not begun."""
        for lane in self._lanes.values():
            while lane.pending:
                _fail(lane.pending.popleft().done, failure)

    async def close(self) -> None:
        """Write what is waiting; later writes are refused. Without a server nobody waits for what was under way."""
        self._closing = True
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            with suppress(StoreUnavailable):
                await self._gate.unless_closed(asyncio.wait(tasks))

    def _put(self, session_id: str, pending: _Fold | _Alone) -> None:
        if self._closing:
            raise StoreUnavailable("the store is closed")
        self._gate.check()  # not only when its turn comes: what is before it may be waiting for the server
        lane = self._lanes.get(session_id)
        if lane is None:
            lane = self._lanes[session_id] = _Lane()
        lane.pending.append(pending)
        if lane.task is None:
            self._lanes.move_to_end(session_id)
            lane.task = asyncio.create_task(self._drain(session_id, lane), name="mongo-lane")

    async def _drain(self, session_id: str, lane: _Lane) -> None:
        try:
            while lane.pending:
                first = lane.pending[0]
                if isinstance(first, _Alone):
                    lane.pending.popleft()
                    if first.forget:
                        lane.slot.head = None
                    await self._carry_out(first)
                else:
                    await self._write(session_id, lane)
        finally:
            lane.task = None
            self._trim()

    async def _carry_out(self, pending: _Alone) -> None:
        try:
            answer = await pending.work()
        except Exception as failure:  # the lane's root: whatever went wrong belongs to the one who waits
            _fail(pending.done, failure)
            return
        _finish(pending.done, answer)

    async def _write(self, session_id: str, lane: _Lane) -> None:
        batch = _batch(lane.pending)
        keys = [pending.key for pending in batch if pending.key is not None]
        outcomes: list[_Outcome] = []

        def fold(draft: Draft) -> bool:
            outcomes.clear()
            for pending in batch:
                if draft.is_full:
                    break
                outcomes.append(_attempt(draft, pending.work))
            return any(isinstance(outcome, AnkerError) for outcome in outcomes)

        try:
            await self._ledger.write(session_id, lane.slot, keys, fold)
        except Exception as failure:  # the lane's root, as above
            for pending in batch:
                _fail(pending.done, failure)
            return
        lane.pending.extendleft(reversed(batch[len(outcomes) :]))
        self._tell(session_id, batch, outcomes)
        await self._ledger.copy_when_possible(lane.slot)

    def _tell(self, session_id: str, batch: Sequence[_Fold], outcomes: Sequence[_Outcome]) -> None:
        loop = asyncio.get_running_loop()
        for outcome in outcomes:
            if isinstance(outcome, Written) and outcome.records:
                # Runs before any waiter, since those are scheduled below; a fault in there cannot hurt us.
                loop.call_soon(self._on_committed, session_id, outcome.records)
        for pending, outcome in zip(batch, outcomes, strict=False):
            if isinstance(outcome, Written):
                _finish(pending.done, outcome.answer)
            else:
                _fail(pending.done, outcome)

    def _trim(self) -> None:
        if len(self._lanes) <= _CAPACITY:
            return
        idle = [session_id for session_id, lane in self._lanes.items() if lane.task is None]
        for session_id in idle[: len(self._lanes) - _CAPACITY]:
            del self._lanes[session_id]


def _batch(pending: "deque[_Fold | _Alone]") -> list[_Fold]:
    """Take what comes next and can be written together."""
    batch: list[_Fold] = []
    while pending and len(batch) < _BATCH:
        first = pending[0]
        if isinstance(first, _Alone):
            break
        batch.append(first)
        pending.popleft()
    return batch


def _attempt(draft: Draft, work: Callable[[Draft], Written[object]]) -> _Outcome:
    try:
        return work(draft)
    except (AnkerError, TypeError, ValueError, RecursionError) as refused:
        # Its own fault and before it added anything: the others go on.
        return refused


def _finish(done: "asyncio.Future[object]", answer: object) -> None:
    if not done.done():
        done.set_result(answer)


def _fail(done: "asyncio.Future[object]", failure: Exception) -> None:
    if done.done():
        return
    # One exception raised in many tasks would collect all their tracebacks.
    if isinstance(failure, StoreUnavailable):
        failure = type(failure)(str(failure), retry_after=failure.retry_after)
    elif type(failure) is NotFound:
        failure = NotFound(str(failure))
    done.set_exception(failure)
