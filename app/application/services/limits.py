"""Limits of each owner on what exists at once (sessions, runs, streams) and on the tokens of a day."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakValueDictionary

from app.domain.clock import unix_now
from app.domain.errors import LimitReached
from app.domain.external.limits import StreamCounts
from app.domain.models.limits import SECONDS_PER_DAY, OwnerLimits, day_of
from app.domain.models.session import Session
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.sessions import SessionRepository


class LimitService:
    """Checks the limits of owners before something is stored or opened.

    The store counts sessions, runs and tokens. In one process, requests of an owner that count take turns, so that two
    of them cannot both take the last place. Each further API process may exceed a limit by one.
    """

    def __init__(
        self,
        *,
        limits: OwnerLimits,
        sessions: SessionRepository,
        event_log: EventLog,
        others: StreamCounts | None = None,
        now: Callable[[], int] = unix_now,
    ) -> None:
        """Create the service.

        Args:
            limits: The limits of each owner.
            sessions: The sessions.
            event_log: The event log.
            others: Counts of other processes; None if there is no other process, or no way to ask it.
            now: Returns the current time in whole seconds since the epoch, UTC.
        """
        self._limits = limits
        self._sessions = sessions
        self._event_log = event_log
        self._others = others
        self._now = now
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._streams: Counter[str] = Counter()

    @asynccontextmanager
    async def new_session(self, owner: str) -> AsyncGenerator[None, None]:
        """Allow the caller to create a session of the owner.

        Raises:
            LimitReached: The owner has too many sessions.
        """
        limit = self._limits.sessions
        if not limit:
            yield
            return
        async with self._turn(owner):
            if await self._sessions.count(owner=owner, up_to=limit) >= limit:
                raise LimitReached(
                    f"too many sessions: {limit} of {limit} (LIMIT_SESSIONS); delete one first", limit="sessions"
                )
            yield

    @asynccontextmanager
    async def new_message(self, session: Session, key: str | None) -> AsyncGenerator[None, None]:
        """Allow the caller to store a message, which starts a run if the session has none.

        A message that was stored before, with the same idempotency key, is always allowed.

        Raises:
            LimitReached: The owner has too many runs, or has used the tokens of the day.
        """
        if not self._limits.runs and not self._limits.tokens_per_day:
            yield
            return
        async with self._turn(session.owner):
            refusal = await self._tokens_refusal(session) or await self._run_refusal(session)
            if refusal is not None and (key is None or await self._event_log.find_message(session.id, key) is None):
                raise refusal
            yield

    @contextmanager
    def stream(self, owner: str) -> Generator[None, None, None]:
        """Count a stream or a desktop viewer of the owner while the context is open.

        Raises:
            LimitReached: The owner has too many of them.
        """
        limit = self._limits.streams
        if not limit:
            yield
            return
        count = self._streams[owner] + (0 if self._others is None else self._others.elsewhere(owner))
        if count >= limit:
            raise LimitReached(
                f"too many open streams and viewers: {count} of {limit} (LIMIT_STREAMS); close one first",
                limit="streams",
            )
        self._count_stream(owner, 1)
        try:
            yield
        finally:
            self._count_stream(owner, -1)

    def _turn(self, owner: str) -> asyncio.Lock:
        return self._turns.setdefault(owner, asyncio.Lock())

    async def _tokens_refusal(self, session: Session) -> LimitReached | None:
        limit = self._limits.tokens_per_day
        if not limit:
            return None
        now = self._now()
        used = await self._event_log.tokens_of_owner(session.id, day=day_of(now))
        if used < limit:
            return None
        return LimitReached(
            f"the tokens of this day are used up: {used} of {limit} (LIMIT_TOKENS_PER_DAY); go on after 00:00 UTC",
            limit="tokens",
            retry_after=SECONDS_PER_DAY - now % SECONDS_PER_DAY,
        )

    async def _run_refusal(self, session: Session) -> LimitReached | None:
        limit = self._limits.runs
        if not limit or session.status == "running":
            return None
        count = await self._sessions.count(owner=session.owner, up_to=limit, running_only=True)
        if count < limit:
            return None
        # Another request may have started the run of this session meanwhile.
        if (await self._sessions.get(session.id, owner=session.owner)).status == "running":
            return None
        return LimitReached(
            f"too many runs at once: {count} of {limit} (LIMIT_RUNS); wait until one ends, or stop one", limit="runs"
        )

    def _count_stream(self, owner: str, change: int) -> None:
        self._streams[owner] += change
        if not self._streams[owner]:
            del self._streams[owner]
        if self._others is not None:
            self._others.announce(owner, self._streams[owner])
