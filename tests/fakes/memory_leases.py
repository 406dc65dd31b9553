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
    stop_up_to: int | None = None


class MemoryLeases:
    """Leases with a clock that a test can move."""

    def __init__(self, store: MemoryStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._rows: dict[str, _Row] = {}

    async def acquire(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
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
        return lease.session_id in await self._store.list_active()

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        row = self._row(session_id)
        before = row.holder if row.until > self._clock() else ""
        self._grant(session_id, row, holder, seconds)
        return before or None

    async def list_claimable(self, *, limit: int) -> Sequence[str]:
        active = set(await self._store.list_active())
        found = [
            (row.until, key)
            for key in await self._store.list_ids()
            if ((row := self._row(key)).stop_up_to is not None or key in active)
            and not (row.holder and row.until > self._clock())
        ]
        return [key for _, key in sorted(found)][:limit]

    async def request_stop(self, session_id: str, *, up_to: int) -> None:
        row = self._row(session_id)
        row.stop_up_to = max(up_to, row.stop_up_to or 0)

    async def requested_stop(self, session_id: str) -> int | None:
        return self._row(session_id).stop_up_to

    async def clear_stop_request(self, session_id: str, *, up_to: int) -> None:
        self._store.check_trouble()
        row = self._rows.get(session_id)
        if row is not None and row.stop_up_to is not None and row.stop_up_to <= up_to:
            row.stop_up_to = None

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
            last_user_message=self._store.last_user_message(session_id),
            stop_up_to=row.stop_up_to,
            previous_holder_lost=inherited,
        )
