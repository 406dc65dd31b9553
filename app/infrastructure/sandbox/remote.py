"""`SANDBOX_PROVIDER=remote`: one sandbox that runs elsewhere, shared by all sessions."""

import logging
import zlib
from collections.abc import Mapping

import httpx

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox, SandboxInstance

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
"""Time limit in seconds for the sandbox to answer a check."""

CONNECTION_POOLS = 16
"""Number of connection pools that the sessions are spread over.

A call takes time for each connection of its pool: 1.6 ms with the connections of 100 sessions in one pool, 0.7 ms with
16 pools.
"""


class RemoteSandboxes:
    """`SandboxProvider` with one sandbox for all sessions: they share files, browser and desktop, but not shells."""

    def __init__(
        self,
        address: str,
        token: str,
        *,
        exec_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Initialize without connecting.

        Args:
            address: The base URL of the sandbox.
            token: The sandbox's token; "" to send none.
            exec_seconds: The sandbox's own SANDBOX_EXEC_SECONDS.
            transport: Replaces real connections in tests.
        """
        self._exec_seconds = exec_seconds
        pools = 1 if transport else CONNECTION_POOLS
        self._apis = [SandboxApiClient(address, token, transport=transport) for _ in range(pools)]

    def warm(self, session_id: str) -> None:
        """Do nothing: the sandbox runs."""

    async def acquire(self, session_id: str) -> HttpSandbox:
        """Return the session's use of the sandbox. Whether it answers shows at the first call."""
        return self._sandbox(session_id)

    async def find(self, session_id: str) -> HttpSandbox | None:
        """Return the same as `acquire`."""
        return self._sandbox(session_id)

    async def peek(self, session_id: str) -> HttpSandbox | None:
        """Return the same as `acquire`."""
        return self._sandbox(session_id)

    async def destroy(self, session_id: str) -> None:
        """Kill what the session's shells run; a failure is logged only."""
        try:
            await self._sandbox(session_id).kill_all()
        except (SandboxUnavailable, SandboxFailure) as error:
            log.warning("the shells of session %s could not be killed: %s", session_id, error)

    def counts(self) -> Mapping[str, int]:
        """Return nothing: this provider starts no sandboxes."""
        return {}

    async def check(self) -> str | None:
        """Return why the sandbox cannot be used now; None if it can."""
        try:
            await self._apis[0].get("status", seconds=CHECK_SECONDS)
        except (SandboxUnavailable, SandboxFailure) as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Close the connections; the sandbox goes on."""
        for api in self._apis:
            await api.aclose()

    def _sandbox(self, session_id: str) -> HttpSandbox:
        pool = zlib.crc32(session_id.encode("utf-8", "surrogatepass")) % len(self._apis)
        api = self._apis[pool]
        instance = SandboxInstance(api=api, id=api.address, exec_seconds=self._exec_seconds)
        return HttpSandbox(instance, scope=session_id)
