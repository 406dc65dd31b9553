"""Several processes of the service over shared stores, a shared model and a shared sandbox."""

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
from typing import Self

import psutil

from tests.support.eventually import eventually
from tests.support.redis_server import RedisServer
from tests.support.replicas import ReplicaSet
from tests.support.service import ROOT, ApiClient, ServiceNotStarted, ServiceProcess
from tests.support.stores import Mongod

EXIT_SECONDS = 5.0
"""Seconds within which a service ends after SIGTERM. On a machine that is too busy for that, twice the time that the
service took to start, which is several times the work."""

GONE_SECONDS = 10.0
"""Seconds within which a killed process disappears from the process table."""

START_SECONDS = 2.0
"""Seconds that a process takes to start with a processor of its own."""


class Member:
    """One process of the service under one name, which the test may end and start again."""

    def __init__(self, name: str, folder: Path, part: str, settings: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.part = part
        self.service = ServiceProcess(folder / "data", part, **settings)
        self.client: ApiClient | None = None
        self.running = False
        self.in_transition = False
        """Whether it is being ended or started: nobody else may do so meanwhile."""
        self.start_seconds = 0.0
        """Seconds that its last start took."""
        self._log_start = 0

    async def start(self, seconds: float = 120) -> None:
        """Start the process. Repeat it, as a supervisor would, while a store that it needs is unavailable."""
        async with asyncio.timeout(seconds):
            while True:
                started = time.monotonic()
                try:
                    line = await self.service.launch(seconds)
                except ServiceNotStarted as error:
                    assert "Traceback" not in str(error), error
                    await asyncio.sleep(0.2)
                    continue
                break
        self.start_seconds = time.monotonic() - started
        if self.part != "worker":
            self.service.url = line.split()[3]
            self.client = ApiClient(self.service.url)
        self.running = True

    async def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.running = False
        await self.service.kill()
        await self._close_client()

    def suspend(self) -> None:
        """Send SIGSTOP: the process hangs, its connections stay open."""
        self.service.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        self.service.signal(signal.SIGCONT)

    async def terminate(self, *, close_client: bool = True) -> float:
        """Send SIGTERM, check that the process ends in order and in time, and return the seconds it took."""
        self.running = False
        started = time.monotonic()
        code = await self.service.stop()
        seconds = time.monotonic() - started
        if close_client:
            await self._close_client()
        # uvicorn ends by the signal that it received, once everything is closed.
        assert code in (0, -signal.SIGTERM), f"{self.name} ended with {code}"
        limit = max(EXIT_SECONDS, 2 * self.start_seconds)
        assert seconds < limit, f"{self.name} took {seconds:.2f} s to end; the limit is {limit:.2f} s"
        return seconds

    async def clean_up(self) -> None:
        """End the process, whatever state it is in."""
        self.running = False
        process = self.service.process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        await self._close_client()

    async def _close_client(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            await client.close()

    @property
    def log(self) -> str:
        """The log since the last call of `skip_log`."""
        return self.service.log.read_bytes()[self._log_start :].decode() if self.service.log.exists() else ""

    def skip_log(self) -> None:
        """Leave what is in the log now out of `log`."""
        self._log_start = self.service.log.stat().st_size


class SandboxProcess:
    """`python -m sandbox`, which outlives the services that use it, as a container does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._token = secrets.token_urlsafe(16)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a service that uses this sandbox."""
        address = f"http://127.0.0.1:{self._port}"
        return {"SANDBOX_PROVIDER": "remote", "SANDBOX_ADDRESS": address, "SANDBOX_TOKEN": self._token}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the process; it accepts connections from now on."""
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
        """Send SIGTERM, which ends everything that runs in the sandbox."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await self._process.wait()


class Cluster:
    """An async context manager that runs the processes of `parts`.

    Args:
        folder: Where each process gets a folder for its data and its log.
        parts: The part of each process by name: "api", "worker", or "" for both in one process.
        settings: Settings of every process.
        sandbox: Started and stopped with the cluster.
        mongod: The running MongoDB of the cluster; None for SQLite.
        redis: The running Redis of the cluster.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, str],
        settings: Mapping[str, str],
        *,
        sandbox: SandboxProcess | None = None,
        mongod: Mongod | ReplicaSet | None = None,
        redis: RedisServer | None = None,
    ) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.mongod = mongod
        self.redis = redis
        self.database = f"chaos_{secrets.token_hex(4)}"
        self.timeline: list[tuple[float, str]] = []
        """What the test did to the cluster, with its monotonic time."""
        self.disruptions: list[float] = []
        """Monotonic times of the faults after which a run may need a while to go on."""
        self._parts = parts
        self._settings = settings
        self.members: list[Member] = []

    async def __aenter__(self) -> Self:
        # One owner, the tests, opens a thousand streams at once.
        settings = {"LOG_LEVEL": "DEBUG", "LIMIT_REQUESTS_PER_SECOND": "0", "LIMIT_STREAMS": "0", **self._settings}
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
            await self._clean_up()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        try:
            if kind is not None:
                print(self.report())
        finally:
            await self._clean_up()

    async def _clean_up(self) -> None:
        for member in self.members:
            await member.clean_up()
        if self.sandbox is not None:
            await self.sandbox.stop()

    def scaled(self, seconds: float) -> float:
        """Return `seconds`, lengthened on a machine that starts processes more slowly than `START_SECONDS`."""
        slowest = max((member.start_seconds for member in self.members), default=0)
        usual = START_SECONDS * max(1, len(self.members) / (os.cpu_count() or 1))
        return seconds * max(1, slowest / usual)

    def record(self, text: str, *, disrupts: bool = False) -> None:
        """Add a line to the timeline. `disrupts`: a run may need a while to go on after this."""
        self.timeline.append((time.monotonic(), text))
        if disrupts:
            self.disruptions.append(self.timeline[-1][0])

    def running_members(self, *parts: str) -> list[Member]:
        return [member for member in self.members if member.running and member.part in parts]

    @property
    def clients(self) -> list[ApiClient]:
        """Clients of the processes that accept requests now."""
        return [member.client for member in self.running_members("api", "") if member.client is not None]

    async def pick_client(self, rng: random.Random) -> ApiClient:
        """Return the client of a random process, and wait for one if none accepts requests."""
        return rng.choice(await eventually(lambda: self.clients, seconds=60))

    async def recover(self) -> None:
        """Bring every process back for the next test, which does not see the log of this one."""
        self.check_logs()
        for member in self.members:
            if member.running:
                member.resume()
            member.skip_log()
        await asyncio.gather(*(member.start() for member in self.members if not member.running))

    async def terminate(self) -> None:
        """Terminate every process at once, as an operator would, and check how they ended."""
        await asyncio.gather(*(member.terminate() for member in self.members if member.running))
        self.check_logs()

    def check_logs(self) -> None:
        """Check that no process logged an unexpected error."""
        for member in self.members:
            assert "Traceback" not in member.log, member.log[member.log.index("Traceback") - 2000 :][:6000]

    def report(self) -> str:
        """Return the timeline and the end of every log, to explain a failure."""
        begin = self.timeline[0][0] if self.timeline else 0.0
        lines = [f"{at - begin:8.3f} {text}" for at, text in self.timeline]
        for member in self.members:
            state = "running" if member.running else "down"
            lines += [f"--- {member.name} ({state}): the end of its log", member.log[-6000:]]
        return "\n".join(lines)


async def wait_until_gone(find: Callable[[], list[str]]) -> None:
    """Wait until `find` returns nothing: a killed process disappears a moment after the signal."""
    found: list[str] = []

    def look() -> bool:
        found[:] = find()
        return not found

    try:
        await eventually(lambda: asyncio.to_thread(look), seconds=GONE_SECONDS, interval=0.02)
    except AssertionError:
        raise AssertionError(f"still running: {found}") from None


def processes_using(folder: Path) -> list[str]:
    """Return the living processes that have a path below `folder` in their environment."""
    return [
        f"{process.pid} {' '.join(command)}"
        for process in psutil.process_iter()
        if (command := _command_if_using(process, str(folder)))
    ]


def processes_with_argument(arguments: Sequence[str]) -> list[str]:
    """Return the command lines of the living processes that have one of `arguments`."""
    wanted, found = set(arguments), list[str]()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if wanted & set(command := process.cmdline()):
                found.append(" ".join(command))
    return found


def _command_if_using(process: psutil.Process, folder: str) -> list[str]:
    with contextlib.suppress(psutil.Error, OSError):
        if process.status() != psutil.STATUS_ZOMBIE and any(folder in value for value in process.environ().values()):
            return process.cmdline()
    return []
