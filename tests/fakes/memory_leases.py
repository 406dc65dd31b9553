"""The `LeaseRepository` of a `MemoryStore`."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.domain.errors import NotFound
from app.domain.repositories.leases import ClaimableSession, Lease
from tests.fakes.memory_store import MemoryStore


@dataclass
class _StoredLease:
    token: int = 0
    holder: str = ""
    valid_until: float = 0.0
    stop_up_to: int | None = None


class MemoryLeases:
    """Leases with a clock that a test can move."""

    def __init__(self, store: MemoryStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._leases: dict[str, _StoredLease] = {}

    def stored(self, session_id: str) -> _StoredLease:
        """Return the lease record of a session, for a test to inspect."""
        return self._leases[session_id]

    async def acquire(self, session_id: str, *, holder: str, seconds: float) -> Lease | None:
        stored = self._find(session_id)
        if self._is_valid(stored):
            return None
        previous_holder_lost = bool(stored.holder)
        self._grant(session_id, stored, holder, seconds)
        return self._lease(session_id, stored, previous_holder_lost=previous_holder_lost)

    async def renew(self, *, holder: str, seconds: float) -> Sequence[Lease]:
        self._store.check_trouble()
        held = [(key, each) for key, each in self._leases.items() if each.holder == holder and self._store.exists(key)]
        for _, each in held:
            each.valid_until = self._clock() + seconds
        return [self._lease(key, each) for key, each in held]

    async def release(self, lease: Lease) -> bool:
        self._store.check_trouble()
        stored = self._leases.get(lease.session_id)
        if stored is None or stored.token != lease.token or not self._store.exists(lease.session_id):
            return False
        stored.holder, stored.valid_until = "", 0.0
        self._store.note_waiting(lease.session_id)
        return lease.session_id in await self._store.list_active()

    async def take_over(self, session_id: str, *, holder: str, seconds: float) -> str | None:
        stored = self._find(session_id)
        before = stored.holder if self._is_valid(stored) else ""
        self._grant(session_id, stored, holder, seconds)
        return before or None

    async def list_claimable(self, *, limit: int) -> Sequence[ClaimableSession]:
        active = await self._store.list_active()
        ranks = Counter(owner for session_id, owner in active.items() if self._is_valid(self._find(session_id)))
        found: list[tuple[int, int, ClaimableSession]] = []
        for session_id in sorted(await self._store.list_ids(), key=self._waiting_since):
            stored, owner = self._find(session_id), self._store.owner(session_id)
            if self._is_valid(stored) or (stored.stop_up_to is None and session_id not in active):
                continue
            is_stopping = stored.stop_up_to is not None
            if not is_stopping:
                ranks[owner] += 1
            rank = 0 if is_stopping else ranks[owner]
            found.append((rank, self._waiting_since(session_id), ClaimableSession(session_id, owner, is_stopping)))
        return [session for _, _, session in sorted(found)][:limit]

    async def request_stop(self, session_id: str, *, up_to: int) -> None:
        stored = self._find(session_id)
        stored.stop_up_to = max(up_to, stored.stop_up_to or 0)

    async def requested_stop(self, session_id: str) -> int | None:
        return self._find(session_id).stop_up_to

    async def clear_stop_request(self, session_id: str, *, up_to: int) -> None:
        self._store.check_trouble()
        stored = self._leases.get(session_id)
        if stored is not None and stored.stop_up_to is not None and stored.stop_up_to <= up_to:
            stored.stop_up_to = None

    def _find(self, session_id: str) -> _StoredLease:
        self._store.check_trouble()
        if not self._store.exists(session_id):
            raise NotFound("no such session")
        return self._leases.setdefault(session_id, _StoredLease())

    def _waiting_since(self, session_id: str) -> int:
        return self._store.waiting_since.get(session_id, 0)

    def _is_valid(self, stored: _StoredLease) -> bool:
        return bool(stored.holder) and stored.valid_until > self._clock()

    def _grant(self, session_id: str, stored: _StoredLease, holder: str, seconds: float) -> None:
        stored.token += 1
        stored.holder, stored.valid_until = holder, self._clock() + seconds
        self._store.fences[session_id] = stored.token

    def _lease(self, session_id: str, stored: _StoredLease, *, previous_holder_lost: bool = False) -> Lease:
        return Lease(
            session_id=session_id,
            token=stored.token,
            owner=self._store.owner(session_id),
            last_user_message=self._store.last_user_message(session_id),
            stop_up_to=stored.stop_up_to,
            previous_holder_lost=previous_holder_lost,
        )
