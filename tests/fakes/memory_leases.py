"""The `LeaseRepository` of a `MemoryStore`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.domain.errors import NotFound
from app.domain.repositories.leases import Lease
from tests.fakes.memory_store import MemoryStore


@dataclass
class _Row:
    token: int = 0
    holder: str = ""
    until: float = 0.0
    stop_upto: int | None = None


class MemoryLeases:
    """Leases with a clock that a test can move."""

    def __init__(self, store: MemoryStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._rows: dict[str, _Row] = {}

    async def take(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
        row = self._row(session_id)
        if row.holder and row.until > self._clock():
            return None
        inherited = bool(row.holder)
        self._grant(session_id, row, holder, seconds)
        return self._lease(session_id, row, inherited=inherited)

    async def renew(self, *, holder: str, seconds: float) -> Sequence[Lease]:
        self._store.check_trouble()
        held = [(key, row) for key, row in self._rows.items() if row.holder == holder and self._store.exists(key)]
        for _, row in held:
            row.until = self._clock() + seconds
        return [self._lease(key, row) for key, row in held]

    async def release(self, lease: Lease) -> bool:
        self._store.check_trouble()
        row = self._rows.get(lease.session_id)
        if row is None or row.token != lease.token or not self._store.exists(lease.session_id):
            return False
        row.holder, row.until = "", 0.0
        return lease.session_id in await self._store.active()

    async def seize(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        row = self._row(session_id)
        before = row.holder if row.until > self._clock() else ""
        self._grant(session_id, row, holder, seconds)
        return before or None

    async def claimable(self, *, limit: int) -> Sequence[str]:
        active = set(await self._store.active())
        found = [
            (row.until, key)
            for key in await self._store.ids()
            if ((row := self._row(key)).stop_upto is not None or key in active)
            and not (row.holder and row.until > self._clock())
        ]
        return [key for _, key in sorted(found)][:limit]

    async def ask_stop(self, session_id: str, *, upto: int) -> None:
        row = self._row(session_id)
        row.stop_upto = max(upto, row.stop_upto or 0)

    async def stop_asked(self, session_id: str) -> int | None:
        return self._row(session_id).stop_upto

    async def stop_answered(self, session_id: str, *, upto: int) -> None:
        self._store.check_trouble()
        row = self._rows.get(session_id)
        if row is not None and row.stop_upto is not None and row.stop_upto <= upto:
            row.stop_upto = None

    def _row(self, session_id: str) -> _Row:
        self._store.check_trouble()
        if not self._store.exists(session_id):
            raise NotFound("no such session")
        return self._rows.setdefault(session_id, _Row())

    def _grant(self, session_id: str, row: _Row, holder: str, seconds: float) -> None:
        row.token += 1
        row.holder, row.until = holder, self._clock() + seconds
        self._store.fences[session_id] = row.token

    def _lease(self, session_id: str, row: _Row, *, inherited: bool = False) -> Lease:
        return Lease(
            session_id=session_id,
            token=row.token,
            words=self._store.last_words(session_id),
            stop_upto=row.stop_upto,
            inherited=inherited,
        )
