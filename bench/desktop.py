"""Measure a desktop's bytes to a viewer: from Xvnc, through the sandbox, and through the service."""

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.client import Connection
from bench.containers import EngineNamespace, docker, engine_namespace, inspect, token_of
from bench.harness import Bench, CannotRun, RunningProcess, median
from bench.report import Row

MIN_RATIO = 0.8
"""Minimum ratio of the sandbox's rate to that of Xvnc's TCP port."""

GIGABIT_LINE = 125.0
"""Rate in MB/s that the service must reach, so that it does not slow a viewer behind a gigabit line."""

SOCKET = "/run/anker/anker-desktop-*/vnc"
"""Pattern of the Unix socket of Xvnc in the sandbox."""

PORT = 5999
"""Port of a second Xvnc that viewers reach directly."""

_PROGRAM = Path(__file__).parent / "programs" / "rfb.py"
_SECONDS = 60
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ViewerRate:
    """The traffic that one viewer received."""

    rate: float
    """MB/s of the RFB protocol."""
    screens: float
    """Full screens per second."""
    cpu: float
    """CPU milliseconds of the service per MB."""


def run(bench: Bench) -> Iterable[Row]:
    """Measure one sandbox with the same viewer in four places, in short turns under the same conditions."""
    seconds = "0.7"
    with (
        engine_namespace() as namespace,
        bench.service(namespace.settings()) as service,
        service.connect() as connection,
    ):
        session = connection.new_session()
        service_url = f"{service.url.replace('http', 'ws', 1)}/api/v1/sessions/{session}/vnc"
        _outside(bench, "0", "ws", service_url)  # starts the sandbox
        container, address, token = _sandbox(namespace, session)
        _settle(address, token)
        _open_port(container)
        viewers: dict[str, Callable[[], bytes]] = {
            "socket": lambda: _inside(container, seconds),
            "port": lambda: _outside(bench, seconds, "tcp", f"{address}:{PORT}"),
            "sandbox": lambda: _outside(bench, seconds, "ws", f"ws://{address}:49171/vnc", token),
            "service": lambda: _outside(bench, seconds, "ws", service_url),
        }
        measured: dict[str, list[ViewerRate]] = {name: [] for name in viewers}
        order = list(viewers)
        for _ in range(bench.pick(16, 6)):
            for name in order:
                measured[name].append(_measure(viewers[name], service))
            order.reverse()
    yield from _rows(measured)


def _rows(measured: dict[str, list[ViewerRate]]) -> Iterable[Row]:
    rates = {name: median([each.rate for each in found]) for name, found in measured.items()}
    screens = {name: median([each.screens for each in found]) for name, found in measured.items()}
    paired = sorted(ours.rate / direct.rate for ours, direct in zip(measured["sandbox"], measured["port"], strict=True))
    yield Row(
        benchmark="desktop",
        measurement="raw screens through the sandbox's WS /vnc",
        unit="MB/s",
        result=rates["sandbox"],
        reference="Xvnc's TCP port",
        reference_value=rates["port"],
        at_least=MIN_RATIO,
        note=f"pair by pair {median(paired):.2f} ({paired[0]:.2f} to {paired[-1]:.2f}); "
        f"{screens['sandbox']:.0f} screens of 4.1 MB per second",
    )
    yield Row(
        benchmark="desktop",
        measurement="the same, compared with a viewer in the container",
        unit="MB/s",
        result=rates["sandbox"],
        reference="Xvnc's Unix socket",
        reference_value=rates["socket"],
        note=f"no network in between: Xvnc's TCP port has {rates['port'] / rates['socket']:.2f}",
    )
    cpu = median([each.cpu for each in measured["service"]])
    share = rates["service"] / rates["port"]
    yield Row(
        benchmark="desktop",
        measurement="raw screens through the service",
        unit="MB/s",
        result=rates["service"],
        reference="a gigabit line",
        reference_value=GIGABIT_LINE,
        at_least=1,
        note=f"{share:.2f} of Xvnc's TCP port; {screens['service']:.0f} screens per second; {cpu:.1f} CPU ms per MB",
    )


def _sandbox(namespace: EngineNamespace, session: str) -> tuple[str, str, str]:
    """Return the name of the session's container, its address and its token."""
    name = namespace.names.of_session(session)
    inspected = inspect(name)
    return name, inspected["NetworkSettings"]["Networks"][namespace.network]["IPAddress"], token_of(inspected)


def _settle(address: str, token: str) -> None:
    """Wait until the browser has started and is idle, because it uses the same processors."""
    until = time.monotonic() + _SECONDS
    with Connection(f"http://{address}:49171", token=token) as connection:
        while not connection.json("GET", "/api/v1/status")["data"]["browser"]["ready"]:
            if time.monotonic() > until:
                raise CannotRun("the sandbox's browser does not start")
            time.sleep(0.1)
    time.sleep(_SETTLE_SECONDS)


def _open_port(container: str) -> None:
    """Start a second Xvnc in the container that differs from the first only in where it listens."""
    command = docker("exec", "--user", "anker", container, "ps", "-C", "Xvnc", "-o", "args=").split()
    for option in ("-rfbunixpath", "-rfbunixmode", "-displayfd"):
        position = command.index(option)
        del command[position : position + 2]
    command[command.index("-rfbport") + 1] = str(PORT)
    docker("exec", "--detach", "--user", "anker", container, command[0], ":99", *command[1:])
    look = f"until grep -q :{PORT:04X} /proc/net/tcp; do sleep 0.05; done"
    docker("exec", container, "timeout", "10", "sh", "-c", look, why="the second Xvnc does not start")


def _measure(viewer: Callable[[], bytes], service: RunningProcess) -> ViewerRate:
    before = service.cpu_seconds()
    output = json.loads(viewer())
    megabytes = output["bytes"] / 1e6
    cpu = (service.cpu_seconds() - before) * 1e3 / megabytes
    return ViewerRate(megabytes / output["seconds"], output["screens"] / output["seconds"], cpu)


def _inside(container: str, seconds: str) -> bytes:
    """Run the viewer in the sandbox's container and return its output."""
    command = ["docker", "exec", "-i", "--user", "anker", container, "python3", "-I", "-", seconds, "unix", SOCKET]
    done = subprocess.run(command, input=_PROGRAM.read_bytes(), capture_output=True, timeout=_SECONDS)
    if done.returncode:
        raise CannotRun(f"the viewer in the container failed: {done.stderr.decode()[-2000:]}")
    return done.stdout


def _outside(bench: Bench, seconds: str, kind: str, where: str, token: str = "") -> bytes:
    """Run the viewer on this machine and return its output."""
    with bench.spawn(["-m", "bench.programs.rfb", seconds, kind, where], {"BENCH_TOKEN": token}) as (process, log):
        output, _ = process.communicate(timeout=_SECONDS)
        if process.returncode:
            raise CannotRun(f"the viewer at {where} failed: {log.read_text()[-2000:]}")
        return output
