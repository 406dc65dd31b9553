"""The Docker engine as a person uses it, and clearing up after a test that used it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

SANDBOX_IMAGE = os.environ.get("SANDBOX_IMAGE") or "simpleyyt/anker-sandbox"
"""The image of the sandboxes; `scripts/image.sh` makes it."""

ROUNDS = 5
"""A service that is removed may have begun to make something that only shows afterwards."""


async def run(*command: str, check: bool = True) -> str:
    """What a command writes to stdout."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert not check or process.returncode == 0, f"{' '.join(command)}: {err.decode()}"
    return out.decode().strip()


async def docker(*arguments: str, check: bool = True) -> str:
    return await run("docker", *arguments, check=check)


async def inspect(name: str) -> dict[str, Any]:
    """A container, volume, network or image."""
    return json.loads(await docker("inspect", name))[0]


async def named(prefix: str) -> dict[str, list[str]]:
    """The containers, volumes and networks whose name begins with `prefix`."""
    listings = {
        "container": ("ps", "--all", "--format", "{{.Names}}"),
        "volume": ("volume", "ls", "--format", "{{.Name}}"),
        "network": ("network", "ls", "--format", "{{.Name}}"),
    }
    found = {kind: (await docker(*listing)).split() for kind, listing in listings.items()}
    return {kind: [name for name in names if name.startswith(prefix)] for kind, names in found.items()}


async def clear(prefix: str) -> None:
    """Remove everything whose name begins with `prefix`."""
    for _ in range(ROUNDS):
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
    """Nothing begins with `prefix` before, nor after."""
    await clear(prefix)
    try:
        yield prefix
    finally:
        await clear(prefix)
