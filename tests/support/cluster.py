"""Processes of the service that live and die together, and what they stand on: stores, a model, a shared sandbox."""

import asyncio
import contextlib
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.redis_server import RedisServer
from tests.support.replicas import ReplicaSet
from tests.support.service import ROOT, ApiClient, ServiceNotStarted, ServiceProcess
from tests.support.stores import Mongod

EXIT_SECONDS = 5.0
"""A service that is told to stop has ended by then; on a machine that is too busy for that, in twice the time that it
took to start, which is several times the work."""

GONE_SECONDS = 10.0
START_SECONDS = 2.0
"""In which a process is up that has a processor of a machine to itself."""


class Member:
    """One process of the service under one name, life after life."""

    def __init__(self, name: str, folder: Path, part: str, settings: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.part = part
        self.service = ServiceProcess(folder / "data", part, **settings)
        self.client: ApiClient | None = None
        self.up = False
        self.busy = False
        """Whether it is on its way down or up: nobody else may kill or start it."""
        self.start_seconds = 0.0
        """How long its last start took."""

    async def start(self, seconds: float = 120) -> None:
        """Until it is up; again and again, as a supervisor would, while a store that it needs is away."""
        async with asyncio.timeout(seconds):
            while True:
                begun = time.monotonic()
                try:
                    line = await self.service.launch(seconds)
                except ServiceNotStarted as error:
                    assert "Traceback" not in str(error), error
                    await asyncio.sleep(0.2)
                    continue
                break
        self.start_seconds = time.monotonic() - begun
        if self.part != "worker":
            self.service.url = line.split()[3]
            self.client = ApiClient(self.service.url)
        self.up = True

    async def kill(self) -> None:
        """SIGKILL."""
        self.up = False
        await self.service.kill()
        await self._hang_up()

    def freeze(self) -> None:
        """SIGSTOP: it hangs, and its connections stay open."""
        self.service.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.service.signal(signal.SIGCONT)

    async def hand_over(self, *, hang_up: bool = True) -> float:
        """SIGTERM; answers the seconds until it had ended, as it should. `hang_up`: then our client is closed."""
        self.up = False
        begun = time.monotonic()
        code = await self.service.stop()
        seconds = time.monotonic() - begun
        if hang_up:
            await self._hang_up()
        # uvicorn ends itself by the signal that it was told to end with, once everything is closed.
        assert code in (0, -signal.SIGTERM), f"{self.name} ended with {code}"
        limit = max(EXIT_SECONDS, 2 * self.start_seconds)
        assert seconds < limit, f"{self.name} ended after {seconds:.2f} s, and not in {limit:.2f} s"
        return seconds

    async def end(self) -> None:
        """Whatever it is doing."""
        self.up = False
        process = self.service.process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await self._hang_up()

    async def _hang_up(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()

    @property
    def log(self) -> str:
        return self.service.log.read_text() if self.service.log.exists() else ""


class SharedSandbox:
    """`python -m sandbox`, which outlives whoever uses it, as a container does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._token = secrets.token_urlsafe(16)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def settings(self) -> dict[str, str]:
        """What a service needs to use it."""
        address = f"http://127.0.0.1:{self._port}"
        return {"SANDBOX_PROVIDER": "remote", "SANDBOX_ADDRESS": address, "SANDBOX_TOKEN": self._token}

    async def __aenter__(self) -> "SharedSandbox":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it; it answers from now on."""
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "SANDBOX_TOKEN": self._token,
            "SANDBOX_HOME": str(self._folder / "home"),
            "SANDBOX_OUTPUT_DIR": str(self._folder / "output"),
            "SANDBOX_BROWSER": "off",
        }
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, (self._folder / "log").open("ab") as log:
            self._port = listener.getsockname()[1]
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sandbox"),
                cwd=ROOT,
                env={**environment, "SANDBOX_FD": str(listener.fileno())},
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    async def stop(self) -> None:
        """End it with all that runs in it."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await self._process.wait()


class Cluster:
    """An async context manager. `parts`: what runs, by name: "api", "worker", or "" for both in one process."""

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, str],
        settings: Mapping[str, str],
        *,
        sandbox: SharedSandbox | None = None,
        mongod: Mongod | ReplicaSet | None = None,
        redis: RedisServer | None = None,
    ) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.mongod = mongod
        self.redis = redis
        self.database = f"chaos_{secrets.token_hex(4)}"
        self.diary: list[tuple[float, str]] = []
        """What was done to it, and when, on the monotonic clock."""
        self.set_back: list[float] = []
        """When something happened after which a run may take a while to go on."""
        self._parts = parts
        self._settings = settings
        self.members: list[Member] = []

    async def __aenter__(self) -> "Cluster":
        settings = {"LOG_LEVEL": "DEBUG", **self._settings}
        if self.mongod is not None:
            settings |= {"MONGODB_URL": self.mongod.url, "MONGODB_DATABASE": self.database}
        if self.redis is not None:
            settings |= {"REDIS_URL": self.redis.url}
        if self.sandbox is not None:
            await self.sandbox.start()
            settings |= self.sandbox.settings
        self.members = [Member(name, self.folder / name, part, settings) for name, part in self._parts.items()]
        try:
            await asyncio.gather(*(member.start() for member in self.members))
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        try:
            if kind is not None:
                print(self.report())
        finally:
            await self._end()

    async def _end(self) -> None:
        for member in self.members:
            await member.end()
        if self.sandbox is not None:
            await self.sandbox.stop()

    def patience(self, seconds: float) -> float:
        """`seconds`; on a machine on which the processes took longer to start, as many times longer."""
        slowest = max((member.start_seconds for member in self.members), default=0)
        usual = START_SECONDS * max(1, len(self.members) / (os.cpu_count() or 1))
        return seconds * max(1, slowest / usual)

    def note(self, text: str, *, sets_back: bool = False) -> None:
        """Into the diary."""
        self.diary.append((time.monotonic(), text))
        if sets_back:
            self.set_back.append(self.diary[-1][0])

    def alive(self, *parts: str) -> list[Member]:
        """The members of these parts that are up."""
        return [member for member in self.members if member.up and member.part in parts]

    @property
    def apis(self) -> list[ApiClient]:
        """Clients of the processes that answer requests now."""
        return [member.client for member in self.alive("api", "") if member.client is not None]

    async def api(self, rng: random.Random) -> ApiClient:
        """One of them, once there is one."""
        async with asyncio.timeout(60):
            while not (apis := self.apis):
                await asyncio.sleep(0.01)
        return rng.choice(apis)

    async def stop(self) -> None:
        """End every process as an operator would, all at once, and look at how they ended."""
        await asyncio.gather(*(member.hand_over() for member in self.members if member.up))
        for member in self.members:
            assert "Traceback" not in member.log, member.log[member.log.index("Traceback") - 2000 :][:6000]

    def report(self) -> str:
        """What happened, for whoever looks into a failure."""
        begun = self.diary[0][0] if self.diary else 0.0
        lines = [f"{at - begun:8.3f} {text}" for at, text in self.diary]
        for member in self.members:
            state = "up" if member.up else "down"
            lines += [f"--- {member.name} ({state}): the end of its log", member.log[-6000:]]
        return "\n".join(lines)


async def none_left(found: Callable[[], list[str]]) -> None:
    """Nothing is found, or soon nothing: a process that was killed is not gone at that very instant."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := await asyncio.to_thread(found):
        assert time.monotonic() < deadline, f"left behind: {left}"
        await asyncio.sleep(0.02)


def leftovers(folder: Path) -> list[str]:
    """The living processes that were given something below `folder` in their environment."""
    return [
        f"{process.pid} {' '.join(command)}"
        for process in psutil.process_iter()
        if (command := _given(process, str(folder)))
    ]


def running(words: Sequence[str]) -> list[str]:
    """The command lines of living processes that have one of `words` as an argument."""
    wanted, found = set(words), list[str]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if wanted & set(command := process.cmdline()):
                found.append(" ".join(command))
    return found


def _given(process: psutil.Process, folder: str) -> list[str]:
    with contextlib.suppress(psutil.Error, OSError):
        if process.status() != psutil.STATUS_ZOMBIE and any(folder in value for value in process.environ().values()):
            return process.cmdline()
    return []
