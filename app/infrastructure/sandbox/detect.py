"""What this machine has for sandboxes: a Docker engine (`SANDBOX_PROVIDER=auto` goes by it), a Chromium."""

import asyncio
import shutil
from collections.abc import Mapping

import httpx

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
CONNECT_SECONDS = 1.0
PING_SECONDS = 10.0
"""For an engine that is there and slow. A wrong no is dear: commands would run unisolated, or elsewhere than the same
session's in another process."""

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""The names under which a sandbox looks for one."""


async def docker_answers(environment: Mapping[str, str]) -> bool:
    """Whether the engine at `DOCKER_HOST` of `environment`, or at its usual socket, answers a ping in time.

    `unix://` and `tcp://` addresses are asked; for any other kind (`ssh://`) the answer is False.
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


def has_chromium() -> bool:
    """Whether a sandbox that is a process on this machine finds a browser."""
    return any(shutil.which(name) for name in CHROMIUM)
