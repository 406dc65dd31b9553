"""Start the processes of a benchmark, end them with it, and compute statistics."""

import os
import secrets
import select
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil

from bench.client import Connection, UnexpectedResponse

ROOT = Path(__file__).parents[1]
START_SECONDS = 60
"""Limit in seconds for a process to start."""

END_SECONDS = 15
"""Seconds from SIGTERM to SIGKILL."""

_INHERITED_VARIABLES = ("PATH", "LANG", "HOME")


class CannotRun(Exception):
    """The benchmark could not run; the text says why."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, int(share * len(ordered) + 0.999999) - 1))]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


class Disk:
    """Measures one small SQLite transaction that is synced to the disk (WAL, FULL), as a property of the machine."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "disk.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE things (data BLOB)")
        self.times: list[float] = []

    def commit(self) -> None:
        """Run one transaction and append its duration in milliseconds to `times`."""
        began = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO things VALUES (?)", (bytes(1200),))
        self._connection.execute("COMMIT")
        self.times.append((time.perf_counter() - began) * 1e3)

    def __str__(self) -> str:
        return f"bare SQLite commit {median(self.times):.1f} ms"


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A server process that the benchmark started."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    token: str = ""

    def cpu_seconds(self) -> float:
        """Return the user and system time of the process in seconds."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def rss_megabytes(self) -> float:
        """Return the resident memory in units of 10^6 bytes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def connect(self) -> Connection:
        """Open a connection to the server."""
        return Connection(self.url, token=self.token)


@dataclass(frozen=True)
class Bench:
    """The environment of one benchmark. `folder` is empty at the start and removed at the end."""

    folder: Path
    quick: bool
    _numbers: Iterator[int] = field(default_factory=count)

    def pick(self, full: int, quick: int) -> int:
        """Return `full`, or `quick` with `--quick`."""
        return quick if self.quick else full

    def path(self, name: str) -> Path:
        """Return a path in the folder that does not exist yet."""
        return self.folder / f"{next(self._numbers):03d}-{name}"

    @contextmanager
    def service(
        self, settings: Mapping[str, str] | None = None, *, data_dir: Path | None = None
    ) -> Iterator[RunningProcess]:
        """Run `python -m app` on `data_dir` or a new data directory. Yield it once it accepts requests."""
        # A benchmark sends more requests than an owner may.
        unlimited = {"LIMIT_REQUESTS_PER_SECOND": "0"}
        values = {"DATA_DIR": str(data_dir or self.path("data")), "PORT": "0", **unlimited, **(settings or {})}
        with self.spawn(["-m", "app"], values) as (process, log):
            yield RunningProcess(process, first_line(process, log).split()[3], log)

    @contextmanager
    def program(self, name: str, *arguments: str, token: str = "") -> Iterator[RunningProcess]:
        """Run `python -m NAME`, a program that prints its base URL as its first line."""
        with self.spawn(["-m", name, *arguments], {"BENCH_TOKEN": token}) as (process, log):
            yield RunningProcess(process, first_line(process, log).strip(), log, token)

    @contextmanager
    def sandbox_stand_in(self) -> Iterator[RunningProcess]:
        """Run a stand-in for the sandbox that responds to shell calls at once."""
        with self.program("bench.programs.sandbox", token=secrets.token_hex(16)) as running:
            yield running

    @contextmanager
    def real_sandbox(self) -> Iterator[RunningProcess]:
        """Run `python -m sandbox` with a new home folder."""
        home, port, token = self.path("home"), free_port(), secrets.token_hex(16)
        home.mkdir()
        settings = {
            "SANDBOX_TOKEN": token,
            "SANDBOX_HOST": "127.0.0.1",
            "SANDBOX_PORT": str(port),
            "SANDBOX_HOME": str(home),
            "SANDBOX_OUTPUT_DIR": str(self.path("output")),
        }
        with self.spawn(["-m", "sandbox"], settings) as (process, log):
            running = RunningProcess(process, f"http://127.0.0.1:{port}", log, token)
            wait_for_response(running, "/api/v1/status")
            yield running

    @contextmanager
    def spawn(
        self, arguments: Sequence[str], settings: dict[str, str]
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Run Python with `arguments`, and end it with the context.

        Its environment is `settings` and the paths. It reads no `.env`, because it runs in the benchmark's folder.
        """
        environment = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
        # Only two benchmarks measure containers; the others must not depend on whether there is an engine.
        environment |= {"PYTHONPATH": str(ROOT), "SANDBOX_PROVIDER": "local", **settings}
        log = self.path("log")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            yield process, log
        finally:
            terminate(process)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and SIGKILL if the process does not end in time."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def first_line(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the first line that the process prints.

    Raises:
        CannotRun: The process ended, or prints nothing in time.
    """
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline().decode() if ready else ""
    if not line:
        raise CannotRun(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
    return line


def wait_for_response(running: RunningProcess, path: str, *, pause: float = 0.002) -> float:
    """Send `GET path` every `pause` seconds until it returns 200; return the monotonic time of that.

    Raises:
        CannotRun: It never does, or not in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            with running.connect() as connection:
                connection.request("GET", path)
                return time.monotonic()
        except (OSError, UnexpectedResponse):
            time.sleep(pause)
    raise CannotRun(f"no response from {running.url}{path}: {running.log.read_text()[-2000:]}")


def free_port() -> int:
    """Return a loopback port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def model_settings(model: RunningProcess) -> dict[str, str]:
    """Return the settings of a service that uses `model`."""
    return {"API_KEY": "sk-bench", "API_BASE": model.url.removesuffix("/v1") + "/v1", "MODEL_NAME": "scripted"}


def sandbox_settings(sandbox: RunningProcess) -> dict[str, str]:
    """Return the settings of a service that uses `sandbox`."""
    return {"SANDBOX_PROVIDER": "remote", "SANDBOX_ADDRESS": sandbox.url, "SANDBOX_TOKEN": sandbox.token}
