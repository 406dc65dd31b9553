"""Storage port: the audit log, to which records can only be added. It outlives the sessions."""

from collections.abc import Sequence
from typing import Protocol

from app.domain.models.audit import AuditEntry, AuditRecord


class AuditLog(Protocol):
    """All records of an installation in one chain, whichever process writes them.

    Every method raises:
        StoreUnavailable: The store cannot be reached or is full. Whether a record was stored is not known.
    """

    async def append(self, entry: AuditEntry) -> AuditRecord:
        """Store `entry` as the next record. It survives the death of the process once this has returned."""
        ...

    async def read(self, *, after: int, limit: int, session_id: str | None = None) -> Sequence[AuditRecord]:
        """Return up to `limit` records with a number above `after`, in order; with `session_id`, only its records."""
        ...
