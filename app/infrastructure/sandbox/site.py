"""What the sandboxes of one local provider share."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from app.infrastructure.sandbox.claims import Claims
from app.infrastructure.sandbox.ledger import Ledger
from app.infrastructure.sandbox.workspace import Places


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The data folder's parts, and how a sandbox is started there."""

    places: Places
    ledger: Ledger
    claims: Claims
    gate: asyncio.Semaphore
    """Bounds how many start at once: a start is half a second of CPU."""
    environment: Mapping[str, str]
    """What a sandbox's own, clean one is picked from."""
    exec_seconds: float
