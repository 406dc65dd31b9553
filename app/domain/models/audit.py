"""Records of the audit log: who did what and when. Each contains the hash of the record before it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

AuditAction = Literal[
    "session.create",
    "session.rename",
    "session.pin",
    "session.stop",
    "session.delete",
    "session.assign",
    "session.export",
    "message.send",
    "shell.view",
    "file.read",
    "ticket.issue",
    "ticket.redeem",
    "desktop.sign",
    "desktop.open",
    "desktop.close",
    "login.refused",
]

AuditOutcome = Literal["accepted", "failed", "refused"]
"""`accepted`: checked, and about to be carried out. `failed`: an accepted action that was not carried out."""

Detail = str | int | bool

GENESIS = "0" * 64
"""The `previous` of the first record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A stored record: its position in the log, its canonical JSON, and the SHA-256 of that."""

    number: int
    """Position in the log, from 1 and without gaps."""
    session_id: str
    data: bytes
    """Canonical JSON (RFC 8785) of all fields. It includes `number` and `previous`, the hash of the record before."""
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A record before the store adds it to the log. It has no text of a conversation: it outlives its session."""

    at: str
    """Time of the action: ISO 8601, UTC, with milliseconds."""
    action: AuditAction
    outcome: AuditOutcome
    actor: str
    """Name of the principal who acts; empty where there is no login."""
    owner: str
    """Name of the owner of the session."""
    session_id: str = ""
    request_id: str = ""
    client: str = ""
    """Address from which the request came."""
    details: Mapping[str, Detail] = field(default_factory=dict[str, Detail])

    def seal(self, *, number: int, previous: str) -> AuditRecord:
        """Return the record with this number that follows the record with the hash `previous`."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "details"}
        fields |= {"details": dict(self.details), "number": number, "previous": previous}
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        # A client may send half a surrogate pair, which neither UTF-8 nor RFC 8785 allows.
        data = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
        return AuditRecord(number=number, session_id=self.session_id, data=data, hash=sha256(data).hexdigest())


def chain(entries: Iterable[AuditEntry], after: AuditRecord | None) -> list[AuditRecord]:
    """Return the records of `entries`, which follow the record `after`, or begin the log if it is None."""
    records: list[AuditRecord] = []
    last, previous = (0, GENESIS) if after is None else (after.number, after.hash)
    for number, entry in enumerate(entries, start=last + 1):
        record = entry.seal(number=number, previous=previous)
        previous = record.hash
        records.append(record)
    return records
