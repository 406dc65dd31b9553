"""What the benchmarks share: processes with a life that ends with the benchmark's, and the statistics."""

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

from bench.client import BadAnswer, Connection

ROOT = Path(__file__).parents[1]
START_SECONDS = 60
END_SECONDS = 15
_KEPT = ("PATH", "LANG", "HOME")


class CannotRun(Exception):
    """A benchmark could not be carried out; the text says why."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, int(share * len(ordered) + 0.999999) - 1))]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


class Disk:
    """What the disk under the stores takes for one small SQLite transaction that is really on it (WAL, FULL)."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "disk.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE things (data BLOB)")
        self.times: list[float] = []

    def commit(self) -> None:
        """One more transaction, timed in milliseconds."""
        began = time.perf_counter()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO things VALUES (?)", (bytes(1200),))
        self._connection.execute("COMMIT")
        self.times.append((time.perf_counter() - began) * 1e3)

    def __str__(self) -> str:
        return f"a bare commit here {median(self.times):.1f} ms"


@dataclass(frozen=True, slots=True)
class Running:
    """A process of ours that listens."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    token: str = ""

    def cpu_seconds(self) -> float:
        """User and system time that the process itself has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def rss_megabytes(self) -> float:
        """Resident memory, in units of 10^6 bytes."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def connect(self) -> Connection:
        """A new connection to it."""
        return Connection(self.url, token=self.token)


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks. `folder` is empty at first and goes away at the end."""

    folder: Path
    quick: bool
    _numbers: Iterator[int] = field(default_factory=count)

    def pick(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    def path(self, name: str) -> Path:
        """A new path in the folder; nothing is there."""
        return self.folder / f"{next(self._numbers):03d}-{name}"

    @contextmanager
    def service(self, settings: Mapping[str, str] | None = None, *, data_dir: Path | None = None) -> Iterator[Running]:
        """`python -m app`, ready to answer, on a data directory of its own unless one is given."""
        values = {"DATA_DIR": str(data_dir or self.path("data")), "PORT": "0", **(settings or {})}
        with self.spawn(["-m", "app"], values) as (process, log):
            yield Running(process, first_line(process, log).split()[3], log)

    @contextmanager
    def program(self, name: str, *arguments: str, token: str = "") -> Iterator[Running]:
        """`python -m <name>`, a program that prints its base URL as its first line."""
        with self.spawn(["-m", name, *arguments], {"BENCH_TOKEN": token}) as (process, log):
            yield Running(process, first_line(process, log).strip(), log, token)

    @contextmanager
    def sandbox_stand_in(self) -> Iterator[Running]:
        """What answers shell calls at once, as the real sandbox would."""
        with self.program("bench.programs.sandbox", token=secrets.token_hex(16)) as running:
            yield running

    @contextmanager
    def real_sandbox(self) -> Iterator[Running]:
        """`python -m sandbox` with a home of its own."""
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
            running = Running(process, f"http://127.0.0.1:{port}", log, token)
            answered(running, "/api/v1/status")
            yield running

    @contextmanager
    def spawn(
        self, arguments: Sequence[str], settings: dict[str, str]
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """This Python with `arguments`, ended with the context. It sees no environment but `settings` and the paths,
        and no `.env`, because it runs in the benchmark's own folder."""
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # Containers are what one of the benchmarks is about; the others must not come upon an engine by chance.
        environment |= {"PYTHONPATH": str(ROOT), "SANDBOX_PROVIDER": "local", **settings}
        log = self.path("log")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            yield process, log
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that does not heed it."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def first_line(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the process prints first.

    Raises:
        CannotRun: it ended before, or prints nothing.
    """
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline().decode() if ready else ""
    if not line:
        raise CannotRun(f"{process.args!r} did not start: {log.read_text()[-2000:]}")
    return line


def answered(running: Running, path: str, *, pause: float = 0.002) -> float:
    """The monotonic time at which `GET path` was first answered with 200, asked every `pause` seconds.

    Raises:
        CannotRun: it is not, in time.
    """
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and running.process.poll() is None:
        try:
            with running.connect() as connection:
                connection.ask("GET", path)
                return time.monotonic()
        except (OSError, BadAnswer):
            time.sleep(pause)
    raise CannotRun(f"no answer from {running.url}{path}: {running.log.read_text()[-2000:]}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def model_settings(model: Running) -> dict[str, str]:
    """The settings that make the service use `model`."""
    return {"API_KEY": "sk-bench", "API_BASE": model.url.removesuffix("/v1") + "/v1", "MODEL_NAME": "scripted"}


def sandbox_settings(sandbox: Running) -> dict[str, str]:
    """The settings that make the service use `sandbox`."""
    return {"SANDBOX_PROVIDER": "remote", "SANDBOX_ADDRESS": sandbox.url, "SANDBOX_TOKEN": sandbox.token}
