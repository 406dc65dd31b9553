"""Use the Docker engine from the command line, and remove what a test left."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

SANDBOX_IMAGE = os.environ.get("SANDBOX_IMAGE") or "simpleyyt/anker-sandbox"
"""Name of the sandbox image; `scripts/image.sh` builds it."""

MAX_CLEAR_ROUNDS = 5
"""Maximum number of rounds to remove everything: a container that is removed may have started to create something
that appears only afterwards."""


async def run(*command: str, check: bool = True) -> str:
    """Run a command and return its standard output."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert not check or process.returncode == 0, f"{' '.join(command)}: {err.decode()}"
    return out.decode().strip()


async def docker(*arguments: str, check: bool = True) -> str:
    return await run("docker", *arguments, check=check)


async def inspect(name: str) -> dict[str, Any]:
    """Return what the engine knows about a container, volume, network or image."""
    return json.loads(await docker("inspect", name))[0]


async def named(prefix: str) -> dict[str, list[str]]:
    """Return the names of the containers, volumes and networks that begin with `prefix`, by kind."""
    listings = {
        "container": ("ps", "--all", "--format", "{{.Names}}"),
        "volume": ("volume", "ls", "--format", "{{.Name}}"),
        "network": ("network", "ls", "--format", "{{.Name}}"),
    }
    found = {kind: (await docker(*listing)).split() for kind, listing in listings.items()}
    return {kind: [name for name in names if name.startswith(prefix)] for kind, names in found.items()}


async def clear(prefix: str) -> None:
    """Remove every container, volume and network whose name begins with `prefix`."""
    for _ in range(MAX_CLEAR_ROUNDS):
        found = await named(prefix)
        if not any(found.values()):
            return
        if found["container"]:
            await docker("rm", "--force", "--volumes", *found["container"], check=False)
        if found["volume"]:
            await docker("volume", "rm", "--force", *found["volume"], check=False)
        if found["network"]:
            await docker("network", "rm", *found["network"], check=False)
    raise AssertionError(f"could not be removed: {found}")


@asynccontextmanager
async def cleared(prefix: str) -> AsyncIterator[str]:
    """Remove everything whose name begins with `prefix`, before and after the block."""
    await clear(prefix)
    try:
        yield prefix
    finally:
        await clear(prefix)
