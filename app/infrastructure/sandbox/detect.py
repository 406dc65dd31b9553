"""Detect what this machine offers for sandboxes, and choose the provider for `SANDBOX_PROVIDER=auto`."""

import asyncio
import shutil
from collections.abc import Mapping
from typing import Literal

import httpx

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
"""Address of the Docker engine when `DOCKER_HOST` is not set."""

CONNECT_SECONDS = 1.0
"""Maximum time to connect to the Docker engine, in seconds."""

PING_SECONDS = 10.0
"""Maximum time that the Docker engine may take to answer a ping, in seconds.

It is long, because a slow engine that is taken for none would make commands run unisolated.
"""

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""Names of the programs that a local sandbox starts as its browser."""


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


def has_chromium() -> bool:
    """Return whether a local sandbox finds a browser on this machine."""
    return any(shutil.which(name) for name in CHROMIUM)
