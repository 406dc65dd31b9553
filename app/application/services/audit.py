"""Record who does what, before it is done, and check that nobody changed the records."""

import asyncio
import contextvars
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import cast

from app.application.context import client_address, principal_name, request_id
from app.domain.errors import AnkerError, StoreUnavailable
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.models.audit import GENESIS, AuditAction, AuditEntry, AuditOutcome, AuditRecord, Detail
from app.domain.repositories.audit import AuditLog

log = logging.getLogger(__name__)

HEAD_SECONDS = 300.0
"""Minimum seconds between two log lines with the head of the audit log."""

VIEW_SECONDS = 300.0
"""Seconds in which repeated looks at the same thing by the same person are one record."""

MAX_VIEWS = 4096
"""Maximum number of looks to remember. Without one of them, its repetition is recorded again."""

REFUSAL_SECONDS = 60.0
"""Seconds in which the refused logins from one address become one record."""

MAX_ADDRESSES = 20
"""Maximum number of such records in that time; one more record counts the refused logins from further addresses."""

OTHERS = "others"
"""`client` of the record that counts these."""

PAGE = 1000
"""Number of records in one read."""


class AuditTrail:
    """Records actions on behalf of the principal of the current request: `async with AuditTrail(...) as audit`."""

    def __init__(
        self,
        audit_log: AuditLog,
        *,
        mask: SecretMask | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        refusal_seconds: float = REFUSAL_SECONDS,
    ) -> None:
        self._log = audit_log
        self._mask = mask or NoSecrets()
        self._clock = clock
        self._now = now
        self._refusal_seconds = refusal_seconds
        self._head: AuditRecord | None = None
        """The newest record of this process that no log line names."""
        self._head_logged_at: float | None = None
        self._views: dict[tuple[str, ...], float] = {}
        self._refusals: Counter[str] = Counter()
        self._refusals_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AuditTrail":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def record(
        self,
        action: AuditAction,
        *,
        owner: str,
        session_id: str = "",
        **details: Detail,
    ) -> AuditRecord:
        """Store a record. Call it when the request is known to be valid, before anything is changed.

        Raises:
            StoreUnavailable: The record may not be stored: do not carry out the action.
        """
        return await self._append(action, "accepted", details, owner=owner, session_id=session_id)

    @asynccontextmanager
    async def recording(
        self, action: AuditAction, *, owner: str, session_id: str = "", **details: Detail
    ) -> AsyncGenerator[None, None]:
        """Record the action that the block carries out, and once more if the block fails.

        Raises:
            StoreUnavailable: The record may not be stored. The block does not run.
        """
        accepted = await self.record(action, owner=owner, session_id=session_id, **details)
        try:
            yield
        except AnkerError as error:
            with suppress(StoreUnavailable):
                failure = {"error": type(error).__name__, "record": accepted.number}
                await self._append(action, "failed", failure, owner=owner, session_id=session_id)
            raise

    async def record_view(self, action: AuditAction, subject: str, *, owner: str, session_id: str) -> None:
        """Record a look at `subject`, of which only a hash is stored. Frontends repeat looks every few seconds.

        Raises:
            StoreUnavailable: The record may not be stored: show nothing.
        """
        view = (principal_name.get() or owner, action, session_id, subject)
        seen_at, at = self._views.get(view), self._clock()
        if seen_at is not None and at - seen_at < VIEW_SECONDS:
            return
        await self.record(action, owner=owner, session_id=session_id, subject_sha256=hash_text(subject))
        self._views.pop(view, None)
        self._views[view] = at
        if len(self._views) > MAX_VIEWS:
            del self._views[next(iter(self._views))]

    def count_refused_login(self, client: str) -> None:
        """Count a refused login. A flood of them becomes a few records a minute, the first after `REFUSAL_SECONDS`."""
        known = client in self._refusals or len(self._refusals) < MAX_ADDRESSES
        self._refusals[client if known else OTHERS] += 1
        if self._refusals_task is None:
            # In a context of its own: it records for many requests.
            self._refusals_task = asyncio.create_task(
                self._record_refusals(), name="audit-refusals", context=contextvars.Context()
            )

    async def close(self) -> None:
        """Store what is counted, and log the head. The store closes after this."""
        if self._refusals_task is not None:
            self._refusals_task.cancel()
            await asyncio.wait((self._refusals_task,))
            await self._store_refusals()
        if self._head is not None:
            self._log_head(self._head)

    async def _record_refusals(self) -> None:
        while self._refusals:
            await asyncio.sleep(self._refusal_seconds)
            await self._store_refusals()
        self._refusals_task = None

    async def _store_refusals(self) -> None:
        refusals, self._refusals = self._refusals, Counter()
        for client, count in refusals.items():
            with suppress(StoreUnavailable):
                client_address.set(client)  # of this task, which serves no request
                await self._append("login.refused", "refused", {"count": count})

    async def _append(
        self,
        action: AuditAction,
        outcome: AuditOutcome,
        details: Mapping[str, Detail],
        *,
        owner: str = "",
        session_id: str = "",
    ) -> AuditRecord:
        entry = AuditEntry(
            at=self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            action=action,
            outcome=outcome,
            # Whoever comes with a ticket or a signed address acts for the owner.
            actor=principal_name.get() or owner,
            owner=owner,
            session_id=session_id,
            request_id=request_id.get(),
            client=client_address.get(),
            details=details,
        )
        # A client chooses the id of its request.
        record = self._head = await self._log.append(self._mask.mask(entry))
        if self._head_logged_at is None or self._clock() - self._head_logged_at >= HEAD_SECONDS:
            self._log_head(record)
        return record

    def _log_head(self, head: AuditRecord) -> None:
        """Log the hash of a record. Whoever keeps the log can prove later that no record up to this one changed."""
        self._head, self._head_logged_at = None, self._clock()
        log.info("head of the audit log", extra={"head": f"{head.number}:{head.hash}"})


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text, which may contain lone surrogates, in hexadecimal digits."""
    return sha256(text.encode("utf-8", "replace")).hexdigest()


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """Result of a check of the audit log."""

    count: int = 0
    """Number of intact records from the first one on."""
    head: str = ""
    """`number:hash` of the last one of these."""
    first_at: str = ""
    last_at: str = ""
    bad_number: int | None = None
    """Number of the first record that is not as it was written; None if all are."""
    problem: str = ""
    expected: dict[int, str] = field(default_factory=dict[int, str])
    """Hashes that were logged before, by number, and that were not met yet."""


async def verify(records: AsyncIterable[AuditRecord], *, expected: Mapping[int, str]) -> AuditReport:
    """Check the whole log, record by record.

    Args:
        records: All records, in order.
        expected: Hashes of single records, by number, that were logged before.
    """
    report = AuditReport(expected=dict(expected))
    previous = GENESIS
    async for record in records:
        report.problem, at = _check(record, report.count + 1, previous, report.expected)
        if report.problem:
            report.bad_number = min(record.number, report.count + 1)
            return report
        previous = record.hash
        report.count = record.number
        report.head = f"{record.number}:{record.hash}"
        report.first_at, report.last_at = report.first_at or at, at
    if report.expected:
        report.bad_number = report.count + 1
        report.problem = f"the log ends before record {max(report.expected)}, which an earlier log line names"
    return report


async def read_all(audit_log: AuditLog, session_id: str | None = None) -> AsyncGenerator[AuditRecord, None]:
    """Yield all records, or those of one session, page by page."""
    after = -(2**63)  # a record that somebody inserted may have any number
    while page := await audit_log.read(after=after, limit=PAGE, session_id=session_id):
        for record in page:
            yield record
        after = page[-1].number


def _check(record: AuditRecord, number: int, previous: str, expected: dict[int, str]) -> tuple[str, str]:
    """Return what is wrong with a record, empty if nothing is, and its time."""
    if record.number != number:
        return f"record {number} is missing" if record.number > number else "it is no record of this log", ""
    if sha256(record.data).hexdigest() != record.hash:
        return "its content does not have its hash: it was changed", ""
    try:
        fields = cast("Mapping[str, object]", json.loads(record.data))
        at, stored = str(fields["at"]), (fields["number"], fields["session_id"], fields["previous"])
    except (ValueError, KeyError, TypeError):
        return "its content is not a record", ""
    if stored[:2] != (record.number, record.session_id):
        return "it is stored under another number or session: it was moved or changed", ""
    if stored[2] != previous:
        return "it does not follow the record before it: one of the two was changed, or others stood between them", ""
    if expected.pop(number, record.hash) != record.hash:
        return "its hash is not the one that was logged: it, or a record before it, was written again", ""
    return "", at
