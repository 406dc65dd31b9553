"""Use cases: sign links to a session's desktop, and check them. A link opens the desktop again until it expires."""

import hmac
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass

from app.application.services.audit import AuditTrail
from app.domain.errors import Unauthorized
from app.domain.models.audit import Detail
from app.domain.repositories.sessions import SessionRepository

_SIGNATURE = re.compile(r"([0-9]{1,12})\.([01])\.([\w-]{0,1400})\.([0-9a-f]{64})", re.ASCII)
"""Its end, whether it is for watching only, the owner in base64, and the code over these and the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHolder:
    """Whom a valid link stands for."""

    owner: str
    view_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DesktopLinks:
    """Sign and check links. All processes with the same `key` accept each other's links; nothing is stored."""

    sessions: SessionRepository
    key: bytes
    audit: AuditTrail
    now: Callable[[], float] = time.time

    async def sign(self, session_id: str, *, owner: str, seconds: int, view_only: bool) -> str:
        """Return the signature that opens the desktop of the owner's session for `seconds`.

        Raises:
            NotFound: The session does not exist.
        """
        await self.sessions.get(session_id, owner=owner)
        details: dict[str, Detail] = {"seconds": seconds, "view_only": view_only}
        await self.audit.record("desktop.sign", owner=owner, session_id=session_id, **details)
        encoded = urlsafe_b64encode(owner.encode()).decode().rstrip("=")
        claims = f"{int(self.now()) + seconds}.{int(view_only)}.{encoded}"
        return f"{claims}.{self._code(session_id, claims)}"

    def check(self, signature: str, *, session_id: str) -> LinkHolder:
        """Return whom the signature stands for. A deleted session is not noticed here.

        Raises:
            Unauthorized: It has expired, was changed, or is for another session.
        """
        found = _SIGNATURE.fullmatch(signature)
        if found is None or not hmac.compare_digest(found[4], self._code(session_id, signature.rpartition(".")[0])):
            raise Unauthorized("the signature opens nothing here: it was changed, or is for another session")
        if int(found[1]) <= self.now():
            raise Unauthorized("the signed address has expired; ask for a new one")
        owner = urlsafe_b64decode(found[3] + "=" * (-len(found[3]) % 4)).decode()
        return LinkHolder(owner=owner, view_only=found[2] == "1")

    def _code(self, session_id: str, claims: str) -> str:
        return hmac.digest(self.key, f"desktop {session_id} {claims}".encode(), "sha256").hex()
