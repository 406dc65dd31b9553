"""The service's own image, built once, and containers of it, run as users run them."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.containers import SANDBOX_IMAGE, cleared, docker, inspect, run
from tests.support.service import ROOT, ApiClient
from tests.support.stores import free_port

IMAGE = f"anker-backend-under-test:{uuid.uuid4().hex[:12]}"
"""Name of the image; unique, because other test runs on this machine build other files."""

SOCKET = ("--volume", "/var/run/docker.sock:/var/run/docker.sock")


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The name of the image, built from the current files. The engine caches the layers of unchanged files."""

    async def build() -> None:
        await run(str(ROOT / "scripts" / "engine.sh"))
        await docker("build", "--quiet", "--tag", IMAGE, str(ROOT))

    asyncio.run(build())
    yield IMAGE
    # With its parents the cache of the next build would be removed too.
    asyncio.run(docker("image", "rm", "--no-prune", IMAGE))


@dataclass
class BackendContainer:
    """A container of the service."""

    name: str
    port: int

    @property
    def client(self) -> ApiClient:
        """A new client of the published port."""
        return ApiClient(f"http://127.0.0.1:{self.port}")

    async def wait_until_ready(self, path: str = "/ready", seconds: float = 30) -> ApiClient:
        """Return a client once `path` returns 200."""
        client = self.client
        deadline = time.monotonic() + seconds
        while True:
            try:
                if (await client.http.get(path)).status_code == 200:
                    return client
            except httpx.TransportError:
                pass  # it does not listen yet, or is joining the sandboxes' network
            assert time.monotonic() < deadline, await self.logs()
            assert (await self.state())["Running"], await self.logs()
            await asyncio.sleep(0.05)

    async def state(self) -> dict[str, Any]:
        return (await inspect(self.name))["State"]

    async def address(self, network: str) -> str:
        return (await inspect(self.name))["NetworkSettings"]["Networks"][network]["IPAddress"]

    async def execute(self, *command: str) -> str:
        """Run a command in the container and return its output."""
        return await docker("exec", self.name, *command)

    async def first_process_status(self) -> dict[str, str]:
        """Return the kernel's status of the first process, whose child the service is."""
        lines = (await self.execute("cat", "/proc/1/status")).splitlines()
        return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}

    async def stop(self) -> float:
        """Stop the container with `docker stop` and return how many seconds that took."""
        started = time.monotonic()
        await docker("stop", self.name)
        return time.monotonic() - started

    async def logs(self) -> str:
        process = await asyncio.create_subprocess_exec(
            "docker", "logs", self.name, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        return (await process.communicate())[0].decode()


class BackendRunner:
    """Runs containers of the service. The names of all their objects begin with `prefix`."""

    def __init__(self, image: str, prefix: str) -> None:
        self.image = image
        self.prefix = prefix
        self._count = 0

    async def run(
        self, *options: str, publish: bool = True, settings: dict[str, str] | None = None
    ) -> BackendContainer:
        """Run a container with the data volume of this test, unless `options` have another one."""
        self._count += 1
        backend = BackendContainer(f"{self.prefix}-backend-{self._count}", free_port())
        if publish:
            options = ("--publish", f"{backend.port}:8000", *options)
        if not any(":/data" in option for option in options):
            options = ("--volume", f"{self.prefix}-data:/data", *options)
        environment = {
            "SANDBOX_NAME_PREFIX": self.prefix,
            "SANDBOX_NETWORK": f"{self.prefix}-network",
            "SANDBOX_IMAGE": SANDBOX_IMAGE,
            **(settings or {}),
        }
        flags = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        # A user copies the example, whose settings are for a service outside a container.
        example = ("--env-file", str(ROOT / ".env.example"))
        await docker("run", "--detach", "--name", backend.name, *example, *flags, *options, self.image)
        return backend


@pytest.fixture
async def runner(image: str) -> AsyncIterator[BackendRunner]:
    async with cleared(f"backend-{uuid.uuid4().hex[:6]}") as prefix:
        yield BackendRunner(image, prefix)
