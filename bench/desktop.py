"""The desktop's bytes on their way to a viewer: from Xvnc itself, through the sandbox's port, through the service."""

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.client import Connection
from bench.containers import Corner, corner, docker, inspect, token_of
from bench.harness import Bench, CannotRun, RunningProcess, median
from bench.report import Row

SHARE = 0.8
LINE = 125.0
"""MB/s of a gigabit line: a viewer that is further away than that is not slowed down by the service."""

SOCKET = "/tmp/anker-desktop-*/vnc"
PORT = 5999
"""Of a second Xvnc, one that viewers reach without us."""

_PROGRAM = Path(__file__).parent / "programs" / "rfb.py"
_SECONDS = 60
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one viewer has got."""

    rate: float
    """MB/s of the protocol (RFB)."""
    pictures: float
    """A second."""
    cpu: float
    """Milliseconds of the service's CPU for each MB."""


def run(bench: Bench) -> Iterable[Row]:
    """One sandbox, and the same viewer in four places; short turns, so that all of them see the same machine."""
    seconds = "0.7"
    with corner() as place, bench.service(place.settings()) as service, service.connect() as asking:
        session = asking.new_session()
        watch = f"{service.url.replace('http', 'ws', 1)}/api/v1/sessions/{session}/vnc"
        _outside(bench, "0", "ws", watch)  # starts the sandbox
        container, address, token = _sandbox(place, session)
        _settle(address, token)
        _open_port(container)
        ways: dict[str, Callable[[], bytes]] = {
            "socket": lambda: _inside(container, seconds),
            "port": lambda: _outside(bench, seconds, "tcp", f"{address}:{PORT}"),
            "sandbox": lambda: _outside(bench, seconds, "ws", f"ws://{address}:8080/vnc", token),
            "service": lambda: _outside(bench, seconds, "ws", watch),
        }
        seen: dict[str, list[Seen]] = {name: [] for name in ways}
        order = list(ways)
        for _ in range(bench.pick(16, 6)):
            for name in order:
                seen[name].append(_seen(ways[name], service))
            order.reverse()
    yield from _rows(seen)


def _rows(seen: dict[str, list[Seen]]) -> Iterable[Row]:
    rates = {name: median([each.rate for each in found]) for name, found in seen.items()}
    pictures = {name: median([each.pictures for each in found]) for name, found in seen.items()}
    paired = sorted(ours.rate / direct.rate for ours, direct in zip(seen["sandbox"], seen["port"], strict=True))
    yield Row(
        benchmark="desktop",
        measurement="raw pictures through the sandbox's WS /vnc",
        unit="MB/s",
        result=rates["sandbox"],
        reference="Xvnc's own TCP port",
        reference_value=rates["port"],
        at_least=SHARE,
        note=f"pair by pair {median(paired):.2f} ({paired[0]:.2f} to {paired[-1]:.2f}); "
        f"{pictures['sandbox']:.0f} pictures of 4.1 MB a second",
    )
    yield Row(
        benchmark="desktop",
        measurement="the same, beside a viewer in the container",
        unit="MB/s",
        result=rates["sandbox"],
        reference="Xvnc's unix socket",
        reference_value=rates["socket"],
        note=f"no network in between: Xvnc's own TCP port is at {rates['port'] / rates['socket']:.2f}",
    )
    cpu = median([each.cpu for each in seen["service"]])
    share = rates["service"] / rates["port"]
    yield Row(
        benchmark="desktop",
        measurement="raw pictures through the service",
        unit="MB/s",
        result=rates["service"],
        reference="a gigabit line",
        reference_value=LINE,
        at_least=1,
        note=f"{share:.2f} of Xvnc's own TCP port; {pictures['service']:.0f} pictures a second; {cpu:.1f} CPU ms a MB",
    )


def _sandbox(place: Corner, session: str) -> tuple[str, str, str]:
    """The session's container, its address, and its token."""
    name = place.names.of_session(session)
    inspected = inspect(name)
    return name, inspected["NetworkSettings"]["Networks"][place.network]["IPAddress"], token_of(inspected)


def _settle(address: str, token: str) -> None:
    """Wait until the browser is there and has drawn itself: it has the same processors."""
    until = time.monotonic() + _SECONDS
    with Connection(f"http://{address}:8080", token=token) as connection:
        while not connection.json("GET", "/api/v1/status")["data"]["browser"]["ready"]:
            if time.monotonic() > until:
                raise CannotRun("the sandbox's browser does not start")
            time.sleep(0.1)
    time.sleep(_SETTLE_SECONDS)


def _open_port(container: str) -> None:
    """Start a second Xvnc in the container, as the first one but for where it listens."""
    command = docker("exec", container, "ps", "-C", "Xvnc", "-o", "args=").split()
    for option in ("-rfbunixpath", "-rfbunixmode", "-displayfd"):
        place = command.index(option)
        del command[place : place + 2]
    command[command.index("-rfbport") + 1] = str(PORT)
    docker("exec", "--detach", container, command[0], ":99", *command[1:])
    look = f"until grep -q :{PORT:04X} /proc/net/tcp; do sleep 0.05; done"
    docker("exec", container, "timeout", "10", "sh", "-c", look, why="a second Xvnc does not start")


def _seen(way: Callable[[], bytes], service: RunningProcess) -> Seen:
    before = service.cpu_seconds()
    told = json.loads(way())
    megabytes = told["bytes"] / 1e6
    cpu = (service.cpu_seconds() - before) * 1e3 / megabytes
    return Seen(megabytes / told["seconds"], told["pictures"] / told["seconds"], cpu)


def _inside(container: str, seconds: str) -> bytes:
    """The viewer in the sandbox's own container."""
    command = ["docker", "exec", "-i", container, "python3", "-I", "-", seconds, "unix", SOCKET]
    done = subprocess.run(command, input=_PROGRAM.read_bytes(), capture_output=True, timeout=_SECONDS)
    if done.returncode:
        raise CannotRun(f"the viewer in the container failed: {done.stderr.decode()[-2000:]}")
    return done.stdout


def _outside(bench: Bench, seconds: str, kind: str, where: str, token: str = "") -> bytes:
    """The viewer on this machine."""
    with bench.spawn(["-m", "bench.programs.rfb", seconds, kind, where], {"BENCH_TOKEN": token}) as (process, log):
        output, _ = process.communicate(timeout=_SECONDS)
        if process.returncode:
            raise CannotRun(f"the viewer of {where} failed: {log.read_text()[-2000:]}")
        return output
