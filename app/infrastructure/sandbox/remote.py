"""One sandbox that runs elsewhere, shared by every session: `SANDBOX_PROVIDER=remote`."""

import logging
import zlib

import httpx

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
LANES = 16
"""Connection pools that the sessions are spread over: a call costs time for each connection of its pool (1.6 ms with a
hundred sessions in one, 0.7 ms in sixteen)."""


class RemoteSandboxes:
    """`SandboxProvider`: the sandbox at `address` for every session. Shell ids are kept apart; files, browser
    and desktop are not."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        exec_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`exec_seconds` is the sandbox's own SANDBOX_EXEC_SECONDS; `transport` replaces real connections in tests."""
        self._exec_seconds = exec_seconds
        lanes = 1 if transport else LANES
        self._links = [SandboxApiClient(address, token, transport=transport) for _ in range(lanes)]

    def warm(self, session_id: str) -> None:
        """Nothing to start."""

    async def acquire(self, session_id: str) -> HttpSandbox:
        """The session's use of the sandbox; whether it answers shows at the first call."""
        return self._use(session_id)

    async def find(self, session_id: str) -> HttpSandbox | None:
        """As `acquire`: it runs for everybody."""
        return self._use(session_id)

    async def destroy(self, session_id: str) -> None:
        """Kill what the session's shells run. That it does not answer is logged: nothing more can be done."""
        try:
            await self._use(session_id).kill_all()
        except (SandboxUnavailable, SandboxFailure) as error:
            log.warning("the shells of session %s could not be killed: %s", session_id, error)

    async def check(self) -> str | None:
        """Why the sandbox cannot be used now; None when it answers."""
        try:
            await self._links[0].get("status", seconds=CHECK_SECONDS)
        except (SandboxUnavailable, SandboxFailure) as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close the connections; the sandbox is not ours to end."""
        for link in self._links:
            await link.aclose()

    def _use(self, session_id: str) -> HttpSandbox:
        link = self._links[zlib.crc32(session_id.encode("utf-8", "surrogatepass")) % len(self._links)]
        return HttpSandbox(link, scope=session_id, exec_seconds=self._exec_seconds)
