"""The leases of this process, and the runs under them."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from app.domain.errors import LeaseLost, NotFound, StoreUnavailable
from app.domain.external.run_queue import RunWorker
from app.domain.external.signals import Signal, Signals
from app.domain.repositories.leases import Lease, LeaseRepository
from app.infrastructure.queue.drivers import PAUSE_SECONDS, Drivers, Ending

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_RUNS = 256
"""Runs that one process carries at once; more wait for another worker, or for one of these to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds. A run whose worker died goes on after at most `lease` + `look`: less than ten seconds. A worker that
    cannot renew for `lease` loses its runs, hence several renewals in that time."""

    lease: float = 6.0
    renew: float = 1.5
    look: float = 1.0
    settle: float = 1.5
    """How long a deletion waits for the word that nothing of the run goes on elsewhere."""


@dataclass(slots=True, eq=False)
class Held:
    """A lease of this process, and the newest of what was asked of the run that it has heard of."""

    lease: Lease
    words: int
    stop_up_to: int = 0
    answering: "asyncio.Task[None] | None" = None
    """Writes down that a stop was carried out; the lease is given back after that."""


class Holdings:
    """Every session that this process has leased: taken, heard, renewed, given back or lost."""

    def __init__(
        self,
        worker: RunWorker,
        leases: LeaseRepository,
        signals: Signals,
        *,
        holder: str,
        takes_runs: bool,
        seconds: float,
    ) -> None:
        """`takes_runs=False`: a run is leased only to end it, and what there is to do after that is left to others.
        `seconds`: how long a lease runs."""
        self._worker = worker
        self._leases = leases
        self._signals = signals
        self._holder = holder
        self._takes_runs = takes_runs
        self._seconds = seconds
        self._drivers = Drivers(worker, ended=self._ended)
        self._held: dict[str, Held] = {}
        self._owed: list[Lease] = []
        """Leases that could not be given back while the store was away."""
        self._strays: set[tuple[str, int]] = set()
        """Sessions and tokens of leases that the store says are ours and we do not know of, as of the last renewal."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    @property
    def active(self) -> int:
        """How many runs are going here."""
        return self._drivers.active

    @property
    def has_room(self) -> bool:
        """Whether this process may take another run."""
        return self._takes_runs and not self._closing and self._drivers.active < MAX_RUNS

    def hear(self, session_id: str, *, words: int = 0, stop_up_to: int | None = None) -> bool:
        """There may be words up to number `words`, or the wish to end the run of those up to `stop_up_to`; what is
        known already does nothing. False: the session is not ours.

        A driver that has just ended needs nothing: its lease goes back, and then it shows whether there is work.
        """
        held = self._held.get(session_id)
        if held is None:
            return False
        goes = self._drivers.goes(session_id)
        if words > held.words:
            held.words = words
            if goes:
                self._drivers.wake(session_id)
        if stop_up_to is not None and goes:
            self._hear_stop(held, stop_up_to)
        return True

    async def take(self, session_id: str, *, stop_up_to: int | None = None) -> "asyncio.Future[None] | None":
        """Lease the session and begin its run, or with `stop_up_to` only end it; None when another has it, or this
        process still has. The answer is done when the stop is. Goes on to its end when the caller is cancelled.

        Raises:
            NotFound: no such session.
            StoreUnavailable: not taken, as far as is known.
        """
        return await asyncio.shield(self.spawn(self._take(session_id, stop_up_to)))

    async def stop(self, session_id: str, *, up_to: int) -> bool:
        """End the run if it goes here or nowhere; False: it goes elsewhere.

        Raises:
            NotFound: no such session.
            StoreUnavailable: the run could not be ended.
        """
        try:
            if self._drivers.goes(session_id):
                await self._drivers.stop(session_id, up_to=up_to)
                return True
            stopped = await self.take(session_id, stop_up_to=up_to)
            if stopped is not None:
                await asyncio.shield(stopped)  # others may wait for it as well
            return stopped is not None
        except LeaseLost:
            return False

    async def drop(self, session_id: str) -> bool:
        """Cut the run short without a word and without giving the lease back; answers whether it was ours."""
        if self._held.pop(session_id, None) is None:
            return False
        await self._drivers.cancel(session_id)
        return True

    async def renew(self) -> None:
        """Renew every lease, and hear with it what is new.

        Raises:
            StoreUnavailable: nothing was renewed.
        """
        asked = dict(self._held)
        if not (asked or self._owed or self._strays):
            return
        leases = await self._leases.renew(holder=self._holder, seconds=self._seconds)
        found = {lease.session_id: lease for lease in leases}
        for session_id, held in asked.items():
            if self._held.get(session_id) is not held:
                continue  # it ended, or was taken anew, while we asked
            now = found.get(session_id)
            if now is None or now.token != held.lease.token:
                self._lose(session_id)
            else:
                self.hear(session_id, words=now.last_user_message, stop_up_to=now.stop_up_to)
        await self._clear_up(leases)

    async def close(self) -> None:
        """Cut every run short and give every lease back."""
        self._closing = True
        await self._drivers.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin `work`, and let `close` wait for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take(self, session_id: str, stop_up_to: int | None) -> "asyncio.Future[None] | None":
        if session_id in self._held or self._drivers.goes(session_id):
            return None
        lease = await self._leases.acquire(session_id, holder=self._holder, seconds=self._seconds)
        if lease is None:
            return None
        held = self._held[session_id] = Held(lease, words=lease.last_user_message)
        if self._closing:
            self._ended(session_id, "done")
            return None
        return self._begin(held, stop_up_to)

    def _begin(self, held: Held, stop_up_to: int | None) -> "asyncio.Future[None]":
        lease = held.lease
        asked = [number for number in (stop_up_to, lease.stop_up_to) if number is not None]
        stopped = self._drivers.start(
            lease.session_id,
            fencing_token=lease.token,
            crashed=lease.previous_holder_lost,
            stop_up_to=max(asked, default=None),
            only_stop=not self._takes_runs,
        )
        if stopped is None:
            stopped = _done()
        elif lease.stop_up_to is not None:
            self._answer_after(held, stopped, max(asked))
        return stopped

    def _ended(self, session_id: str, ending: Ending) -> None:
        """A driver has ended: its lease goes back."""
        held = self._held.pop(session_id, None)
        if ending == "lost":
            self.spawn(self._worker.forget(session_id))
        elif held is not None:
            self.spawn(self._release(held, pause=PAUSE_SECONDS if ending == "failed" else 0))

    async def _release(self, held: Held, *, pause: float) -> None:
        """Give the lease back; when there are words again by then, the run goes on, here or elsewhere."""
        if held.answering is not None:
            await asyncio.wait([held.answering])
        if pause and not self._closing:
            await asyncio.sleep(pause)  # what failed for a fault of ours is not tried again in a tight circle
        session_id = held.lease.session_id
        try:
            if not await self._leases.release(held.lease):
                return
            if self.has_room and await self._take(session_id, None) is not None:
                return
        except StoreUnavailable:
            self._owed.append(held.lease)
        except NotFound:
            return
        self._signals.send(Signal(kind="wake", session_id=session_id))

    def _hear_stop(self, held: Held, up_to: int) -> None:
        if up_to > held.stop_up_to:
            self._answer_after(held, self._drivers.stop(held.lease.session_id, up_to=up_to), up_to)
        elif held.answering is not None and held.answering.done():
            # Asked again by somebody who had not seen the answer: the run that goes on is one of later words.
            self._answer_after(held, _done(), held.stop_up_to)

    def _lose(self, session_id: str) -> None:
        """Another worker has the session: nothing of ours can be written any more."""
        log.warning("a run was lost to another worker", extra={"session_id": session_id})
        self._held.pop(session_id, None)
        self.spawn(self._drivers.cancel(session_id, lost=True))

    def _answer_after(self, held: Held, stopped: "asyncio.Future[None]", up_to: int) -> None:
        held.stop_up_to = up_to
        held.answering = self.spawn(self._answer(held, stopped, up_to))

    async def _answer(self, held: Held, stopped: "asyncio.Future[None]", up_to: int) -> None:
        """Write down that a stop that was asked for elsewhere is carried out."""
        session_id = held.lease.session_id
        try:
            await stopped
            await self._leases.clear_stop_request(session_id, up_to=up_to)
        except (StoreUnavailable, LeaseLost):
            held.stop_up_to = 0  # it still stands in the store, and is heard again with the next renewal
            return
        self._signals.send(Signal(kind="settled", session_id=session_id, up_to=up_to))

    async def _clear_up(self, found: Iterable[Lease]) -> None:
        """Give back what could not be given back before, and what we were granted without hearing of it."""
        unknown = {(lease.session_id, lease.token): lease for lease in found if lease.session_id not in self._held}
        strays = [lease for key, lease in unknown.items() if key in self._strays]
        self._strays = set(unknown)
        owed, self._owed = self._owed, []
        for lease in {lease.session_id: lease for lease in (*owed, *strays)}.values():
            await self._release(Held(lease, words=lease.last_user_message), pause=0)


def _done() -> "asyncio.Future[None]":
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done
