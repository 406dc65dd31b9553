"""No sandboxes at all, for a reason that the user is told."""

from app.domain.errors import SandboxUnavailable
from app.domain.external.sandbox import Sandbox

REAL_MODEL_UNISOLATED = (
    "Docker does not answer on this machine, and a real model gets a shell only in isolation. Install Docker and start "
    "it, or set SANDBOX_PROVIDER=local if you accept that the model's commands run as your own user, unisolated."
)
"""The reason with SANDBOX_PROVIDER=auto, no Docker, and a model that is not the demo."""

RETRY_SECONDS = 60
"""Somebody has to install or configure something first."""


class RefusedSandboxes:
    """`SandboxProvider` that refuses every sandbox with `reason`; all else works as if there had never been one."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def warm(self, session_id: str) -> None:
        """Nothing: `acquire` will say why."""

    async def acquire(self, session_id: str) -> Sandbox:
        """Never answers.

        Raises:
            SandboxUnavailable: always.
        """
        raise SandboxUnavailable(self._reason, retry_after=RETRY_SECONDS)

    async def find(self, session_id: str) -> Sandbox | None:
        """None: no session has one."""
        return None

    async def destroy(self, session_id: str) -> None:
        """Nothing to end."""

    async def check(self) -> str | None:
        """The reason."""
        return self._reason

    async def close(self) -> None:
        """Nothing to close."""
