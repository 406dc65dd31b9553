"""A real Redis on a free loopback port that a test can kill, freeze and start again."""

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.stores import free_port

_START_SECONDS = 20


def require_redis() -> str:
    """Return the path of redis-server. Without one, skip the test; in CI, fail it."""
    path = shutil.which("redis-server")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("redis-server is not installed")
        pytest.skip("redis-server is not installed")
    return path


class RedisServer:
    """A Redis without persistence that keeps its port, so that clients find it after a restart."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Id of the server's process."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        self._directory.cleanup()

    async def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        where = Path(self._directory.name)
        with (where / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(require_redis(), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(where)),
                *("--save", "", "--appendonly", "no", "--daemonize", "no", *self._arguments),
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(_START_SECONDS):
            while not await self._accepts_connections():
                assert self._process.returncode is None, (where / "log").read_text()
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """Kill the server, also if it is frozen."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process of the server, so that it accepts connections but does not reply."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process of the server."""
        os.kill(self.pid, signal.SIGCONT)

    async def execute(self, *command: str | bytes) -> Any:
        """Return the reply to one command."""
        from redis.asyncio import Redis

        async with Redis.from_url(self.url, socket_timeout=10) as client:
            return await client.execute_command(*command)

    async def _accepts_connections(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
