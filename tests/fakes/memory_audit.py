"""The `AuditLog` of a `MemoryStore`."""

from collections.abc import Sequence

from app.domain.errors import StoreUnavailable
from app.domain.models.audit import AuditEntry, AuditRecord, chain
from tests.fakes.memory_store import MemoryStore


class MemoryAuditLog:
    """Records in a list. Set `trouble` to make every call raise `StoreUnavailable`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.entries: list[AuditEntry] = []
        self.records: list[AuditRecord] = []
        self.trouble: str | None = None
        self.ignores_store = False
        """Whether it works while the store has trouble."""

    async def append(self, entry: AuditEntry) -> AuditRecord:
        self._check_trouble()
        self.entries.append(entry)
        self.records += chain([entry], self.records[-1] if self.records else None)
        return self.records[-1]

    async def read(self, *, after: int, limit: int, session_id: str | None = None) -> Sequence[AuditRecord]:
        self._check_trouble()
        found = [each for each in self.records if each.number > after and session_id in (None, each.session_id)]
        return found[:limit]

    def _check_trouble(self) -> None:
        if not self.ignores_store:
            self._store.check_trouble()
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)
