"""`SANDBOX_PROVIDER=auto`: choose a provider by what this machine offers, or run without sandboxes."""

import asyncio
from collections.abc import Mapping
from typing import Literal

import httpx

from app.domain.errors import SandboxUnavailable
from app.domain.external.sandbox import Sandbox

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
"""Address of the Docker engine when `DOCKER_HOST` is not set."""

CONNECT_SECONDS = 1.0
"""Time limit in seconds to connect to the Docker engine."""

PING_SECONDS = 10.0
"""Time limit in seconds for the Docker engine to answer a ping.

It is long, because with a slow engine that is taken for none, commands would run unisolated.
"""

REAL_MODEL_UNISOLATED = (
    "Docker does not answer on this machine, and a real model gets a shell only in isolation. Install Docker and start "
    "it, or set SANDBOX_PROVIDER=local if you accept that the model's commands run as your own user, unisolated."
)
"""Reason for having no sandboxes with `SANDBOX_PROVIDER=auto`, no Docker, and a model other than the demo."""

RETRY_SECONDS = 60
"""Time in seconds after which clients should retry: an operator has to change something first."""


async def choose_provider(
    environment: Mapping[str, str], *, demo_model: bool
) -> Literal["docker", "local", "unavailable"]:
    """Return the provider that `SANDBOX_PROVIDER=auto` means on this machine.

    A real model gets an unisolated shell only if the operator asks for it with `SANDBOX_PROVIDER=local`.
    """
    if await docker_answers(environment):
        return "docker"
    return "local" if demo_model else "unavailable"


async def docker_answers(environment: Mapping[str, str]) -> bool:
    """Return whether the engine at `DOCKER_HOST` of `environment`, or at its usual socket, answers a ping in time.

    Only `unix://` and `tcp://` addresses are tried; for any other scheme, such as `ssh://`, return False.
    """
    address = environment.get("DOCKER_HOST") or DEFAULT_SOCKET
    scheme, _, place = address.partition("://")
    if scheme == "unix":
        transport, url = httpx.AsyncHTTPTransport(uds=place, verify=False), "http://docker/_ping"
    elif scheme in ("tcp", "http"):
        transport, url = httpx.AsyncHTTPTransport(verify=False), f"http://{place.rstrip('/')}/_ping"
    else:
        return False
    try:
        timeouts = httpx.Timeout(PING_SECONDS, connect=CONNECT_SECONDS)
        async with asyncio.timeout(PING_SECONDS), httpx.AsyncClient(transport=transport, timeout=timeouts) as client:
            answer = await client.get(url)
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, OSError):
        return False
    return answer.is_success


class UnavailableSandboxes:
    """`SandboxProvider` without sandboxes: the rest of the service works, and every use of a sandbox fails."""

    def __init__(self, reason: str) -> None:
        """Use `reason` as the text of every error."""
        self._reason = reason

    def warm(self, session_id: str) -> None:
        """Do nothing; `acquire` raises the reason."""

    async def acquire(self, session_id: str) -> Sandbox:
        """Raise the reason.

        Raises:
            SandboxUnavailable: Always.
        """
        raise SandboxUnavailable(self._reason, retry_after=RETRY_SECONDS)

    async def find(self, session_id: str) -> Sandbox | None:
        """Return None."""
        return None

    async def peek(self, session_id: str) -> Sandbox | None:
        """Return None."""
        return None

    async def destroy(self, session_id: str) -> None:
        """Do nothing."""

    def counts(self) -> Mapping[str, int]:
        """Return nothing: this provider starts no sandboxes."""
        return {}

    async def check(self) -> str | None:
        """Return the reason."""
        return self._reason

    async def close(self) -> None:
        """Do nothing."""
