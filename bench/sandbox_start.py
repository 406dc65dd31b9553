"""Measure the start of a Docker sandbox, an adoption from the pool, access to a running one, and idle memory."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.infrastructure.sandbox.docker.container_spec import is_pooled
from app.infrastructure.sandbox.docker.engine import DockerEngine
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from bench.bare_run import DockerRun, StatusClient, options_of
from bench.containers import EngineNamespace, docker, engine_namespace, inspect, token_of
from bench.harness import Bench, CannotRun, median
from bench.report import Row, within

MAX_RATIO = 1.15
"""Maximum ratio of a start to `docker run` with the same options."""

ADOPTION_LIMIT = 50.0
"""Limit in milliseconds. An adoption looks for the session's container, creates the volume that points to the
workspace, renames the container and checks the sandbox, while the next pooled sandbox is being created."""

RUNNING_LIMIT = 5.0
"""Limit in milliseconds to check a running sandbox."""

BLOCKED_LIMIT = 20.0
"""Limit in milliseconds for which the event loop is blocked."""

MEMORY = 1024.0
"""Memory limit of a sandbox in MiB."""

_RECHECK_SECONDS = 2.1
"""Seconds without a response after which the provider checks a sandbox before it returns it."""

_TICK_SECONDS = 0.001
_PAUSE_SECONDS = 0.5
_SETTLE_SECONDS = 2.0
_SECONDS = 60


@dataclass(slots=True)
class Times:
    """The measured times in seconds; `bare` are those of the command line."""

    first: float = 0.0
    cold: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    """The longest time for which the event loop was blocked, for each start."""
    busy: list[float] = field(default_factory=list)
    """The most CPU time of this process between two ticks: the part of `blocked` that this process causes."""
    blocked_bare: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {"desktop": [], "browser": []})
    parts_bare: dict[str, list[float]] = field(default_factory=lambda: {"desktop": [], "browser": []})
    adopted: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    """The time of the engine's part of an adoption."""
    running: list[float] = field(default_factory=list)
    verified: list[float] = field(default_factory=list)
    memory: float = 0.0
    """Memory of an idle sandbox in MiB."""
    different_options: str = ""
    """How the options of a start and of `docker run` differed."""
    adoption_failure: str = ""
    """What a session got instead of the pooled sandbox."""


def run(bench: Bench) -> Iterable[Row]:
    """Measure starts in turn with `docker run`, then a running sandbox, then the pool."""
    times = Times()
    with engine_namespace() as namespace:
        asyncio.run(_measure(bench, namespace, times))
    yield from _start_rows(times)
    yield from _reuse_rows(times)


def _start_rows(times: Times) -> Iterable[Row]:
    pairs = sorted(ours / bare for ours, bare in zip(times.cold, times.bare, strict=True))
    yield Row(
        benchmark="sandbox_start",
        measurement="a new sandbox",
        unit="s",
        result=median(times.cold),
        reference="docker run, the same options",
        reference_value=median(times.bare),
        at_most=MAX_RATIO,
        note=f"pair by pair {median(pairs):.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f}); "
        f"lowest {min(times.cold):.2f} and {min(times.bare):.2f} s",
        failure=times.different_options,
    )
    for part, name in (("desktop", "its desktop"), ("browser", "its browser (CDP)")):
        yield _row_without_target(
            f"{name} ready", "s", median(times.parts[part]), "docker run", median(times.parts_bare[part])
        )
    note = "with the network and its firewall"
    yield _row_without_target(
        "the first sandbox of a new installation", "s", times.first, "later ones", median(times.cold), note
    )
    blocked, busy, waited = (_milliseconds(each) for each in (times.blocked, times.busy, times.blocked_bare))
    highest = max(times.blocked) * 1e3
    note = f"highest {highest:.0f} ms; CPU time of this process {busy:.1f} ms; during docker run {waited:.1f} ms"
    yield within("sandbox_start", "longest block of the event loop in a start", blocked, BLOCKED_LIMIT, "ms", note)


def _reuse_rows(times: Times) -> Iterable[Row]:
    note = f"highest {max(times.adopted) * 1e3:.0f} ms; the engine alone {_milliseconds(times.engine):.1f} ms"
    adopted = _milliseconds(times.adopted)
    yield within(
        "sandbox_start",
        "adoption of a waiting sandbox",
        adopted,
        ADOPTION_LIMIT,
        "ms",
        note,
        failure=times.adoption_failure,
    )
    note = f"within 2 s of its last response {_milliseconds(times.running):.2f} ms"
    verified = _milliseconds(times.verified)
    yield within("sandbox_start", "a running sandbox, checked first", verified, RUNNING_LIMIT, "ms", note)
    yield _row_without_target(
        "memory of an idle sandbox", "MiB", times.memory, "limit", MEMORY, "desktop and browser; docker stats"
    )


def _row_without_target(
    measurement: str, unit: str, result: float, reference: str, value: float, note: str = ""
) -> Row:
    """Return a row that has no target."""
    return Row(
        benchmark="sandbox_start",
        measurement=measurement,
        unit=unit,
        result=result,
        reference=reference,
        reference_value=value,
        note=note,
    )


def _milliseconds(seconds: list[float]) -> float:
    return median(seconds) * 1e3


async def _measure(bench: Bench, namespace: EngineNamespace, times: Times) -> None:
    known = {f"{kind}-{number}" for kind in ("cold", "warm") for number in range(100)}
    engine = DockerEngine()
    bare = DockerRun(namespace, engine, bench.folder)
    began = time.perf_counter()
    async with namespace.sandboxes(known) as sandboxes:
        await sandboxes.acquire("cold-0")
        times.first = time.perf_counter() - began
        await sandboxes.destroy("cold-0")
        _remove((await bare.start(0))[0])
        for number in range(1, bench.pick(12, 4)):
            ours = await _measure_start(sandboxes, namespace, f"cold-{number}", times)
            theirs = await _measure_docker_run(bare, number, times)
            if apart := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
                times.different_options = f"docker run was given other options: {', '.join(apart)}"
        await _measure_running(sandboxes, namespace, bench.pick(10, 4), times)
        await _measure_engine(engine, bare, bench.pick(7, 3), times)
    async with namespace.sandboxes(known, pool_size=1) as sandboxes:
        for number in range(1, bench.pick(8, 3)):
            await _measure_adoption(sandboxes, namespace, engine, f"warm-{number}", times)
    engine.close()


async def _measure_start(
    sandboxes: DockerSandboxes, namespace: EngineNamespace, session: str, times: Times
) -> dict[str, object]:
    """Start a new sandbox and return the options of its container."""
    name = namespace.names.of_session(session)
    began = time.perf_counter()
    async with LoopMonitor() as monitor:
        await sandboxes.acquire(session)
    times.cold.append(time.perf_counter() - began)
    times.blocked.append(monitor.longest)
    times.busy.append(monitor.busiest)
    await _measure_parts(_status(namespace, name), began, times.parts)
    options = options_of(name)
    await sandboxes.destroy(session)
    await asyncio.sleep(_PAUSE_SECONDS)
    return options


async def _measure_docker_run(bare: DockerRun, number: int, times: Times) -> dict[str, object]:
    """Do the same as `_measure_start` with the command line."""
    began = time.perf_counter()
    async with LoopMonitor() as monitor:
        name, status = await bare.start(number)
    times.bare.append(time.perf_counter() - began)
    times.blocked_bare.append(monitor.longest)
    await _measure_parts(status, began, times.parts_bare)
    options = options_of(name)
    _remove(name)
    await asyncio.sleep(_PAUSE_SECONDS)
    return options


async def _measure_parts(status: StatusClient, began: float, found: dict[str, list[float]]) -> None:
    for part, seconds in found.items():
        seconds.append(await status.wait_for(part) - began)


async def _measure_running(
    sandboxes: DockerSandboxes, namespace: EngineNamespace, repetitions: int, times: Times
) -> None:
    """Acquire a running sandbox repeatedly, then read its memory."""
    await sandboxes.acquire("warm-0")
    await _status(namespace, namespace.names.of_session("warm-0")).wait_for("browser")
    for _ in range(repetitions):
        await asyncio.sleep(_RECHECK_SECONDS)
        for seconds in (times.verified, times.running):
            began = time.perf_counter()
            await sandboxes.acquire("warm-0")
            seconds.append(time.perf_counter() - began)
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", namespace.names.of_session("warm-0"))
    found = re.match(r"([\d.]+)MiB", used)
    if found is None:
        raise CannotRun(f"unexpected output of docker stats: {used!r}")
    times.memory = float(found[1])
    await sandboxes.destroy("warm-0")


async def _measure_engine(engine: DockerEngine, bare: DockerRun, repetitions: int, times: Times) -> None:
    """Measure the engine's part of an adoption without other work."""
    name, _ = await bare.start(99)
    for number in range(repetitions):
        began = time.perf_counter()
        await engine.container(f"{name}-{number}")
        await engine.get_or_create_volume(f"{name}-{number}", {})
        await engine.rename_container(name, f"{name}-{number}")
        times.engine.append(time.perf_counter() - began)
        name = f"{name}-{number}"
    _remove(name)


async def _measure_adoption(
    sandboxes: DockerSandboxes, namespace: EngineNamespace, engine: DockerEngine, session: str, times: Times
) -> None:
    """Let a session adopt a pooled sandbox that is idle."""
    waiting = await _pooled_container(namespace, engine)
    status = _status(namespace, waiting)
    await status.wait_for("browser")
    await asyncio.sleep(_SETTLE_SECONDS)
    container_id = inspect(waiting)["Id"]
    began = time.perf_counter()
    sandbox = await sandboxes.acquire(session)
    times.adopted.append(time.perf_counter() - began)
    if sandbox.instance_id != container_id:
        times.adoption_failure = "a new sandbox instead of the pooled one"
    await sandboxes.destroy(session)


async def _pooled_container(namespace: EngineNamespace, engine: DockerEngine) -> str:
    """Wait for a pooled container and return its name."""
    async with asyncio.timeout(_SECONDS):
        while True:
            for each in await engine.containers(namespace.names.ownership):
                if each.running and is_pooled(each):
                    return each.name
            await asyncio.sleep(0.1)


def _status(namespace: EngineNamespace, name: str) -> StatusClient:
    inspected = inspect(name)
    return StatusClient(inspected["NetworkSettings"]["Networks"][namespace.network]["IPAddress"], token_of(inspected))


def _remove(name: str) -> None:
    """Remove a container that `docker run` started."""
    docker("rm", "--force", name)


class LoopMonitor:
    """A context manager that measures in seconds for how long the event loop is blocked."""

    def __init__(self) -> None:
        self.longest = self.busiest = 0.0
        self._ticks: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "LoopMonitor":
        self._ticks = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._ticks is not None
        await asyncio.sleep(2 * _TICK_SECONDS)  # the current tick may be late
        self._ticks.cancel()
        await asyncio.wait({self._ticks})

    async def _tick(self) -> None:
        while True:
            before, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(_TICK_SECONDS)
            self.longest = max(self.longest, time.perf_counter() - before - _TICK_SECONDS)
            self.busiest = max(self.busiest, time.process_time() - used)
