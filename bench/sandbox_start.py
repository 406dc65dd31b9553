"""How long it takes to have a sandbox: cold, from the pool, and one that runs. And what it holds when idle."""

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from app.infrastructure.sandbox.docker.container_spec import is_pooled
from app.infrastructure.sandbox.docker.engine import DockerEngine
from app.infrastructure.sandbox.docker.provider import DockerSandboxes
from bench.bare_run import BareRun, Status, options_of
from bench.containers import Corner, corner, docker, inspect, token_of
from bench.harness import Bench, CannotRun, median
from bench.report import Row, within

SHARE = 1.15
ADOPTION_LIMIT = 50.0
"""Milliseconds. The engine is asked whether the session has a container, to make the volume that points to the
workspace, and to rename; the sandbox whether it is there. The next one to wait is being made meanwhile."""
RUNNING_LIMIT = 5.0
BLOCKED_LIMIT = 20.0
MEMORY = 1024.0
"""MiB that a sandbox may use."""

_FRESH_SECONDS = 2.1
"""A sandbox that answered so long ago is asked once more before it is handed out."""
_TICK_SECONDS = 0.001
_PAUSE_SECONDS = 0.5
_SETTLE_SECONDS = 2.0
_SECONDS = 60


@dataclass(slots=True)
class Times:
    """What was measured, in seconds; `bare` is the command line's."""

    first: float = 0.0
    cold: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    """The longest that the event loop was away, for each start."""
    busy: list[float] = field(default_factory=list)
    """The most that this process computed between two ticks: the part of it that is not the machine's."""
    blocked_bare: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {"desktop": [], "browser": []})
    parts_bare: dict[str, list[float]] = field(default_factory=lambda: {"desktop": [], "browser": []})
    adopted: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    """What the engine alone takes for an adoption."""
    running: list[float] = field(default_factory=list)
    verified: list[float] = field(default_factory=list)
    memory: float = 0.0
    """MiB."""
    unlike: str = ""
    """Why a start and the one beside it were not the same thing."""
    made: str = ""
    """What a session was given instead of the one that waited."""


def run(bench: Bench) -> Iterable[Row]:
    """Cold starts in turn with bare ones, then one that runs, then the pool."""
    times = Times()
    with corner() as place:
        asyncio.run(_measure(bench, place, times))
    yield from _starts(times)
    yield from _taken(times)


def _starts(times: Times) -> Iterable[Row]:
    pairs = sorted(ours / bare for ours, bare in zip(times.cold, times.bare, strict=True))
    yield Row(
        benchmark="sandbox_start",
        measurement="a sandbox from nothing",
        unit="s",
        result=median(times.cold),
        reference="docker run, the same options",
        reference_value=median(times.bare),
        at_most=SHARE,
        note=f"pair by pair {median(pairs):.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f}); "
        f"lowest {min(times.cold):.2f} beside {min(times.bare):.2f} s",
        failure=times.unlike,
    )
    for part, name in (("desktop", "its desktop"), ("browser", "its browser (CDP)")):
        yield _told(f"{name} ready", "s", median(times.parts[part]), "docker run", median(times.parts_bare[part]))
    note = "with the network and its guard"
    yield _told("the first one of a new installation", "s", times.first, "later ones", median(times.cold), note)
    blocked, busy, bare = (_milliseconds(each) for each in (times.blocked, times.busy, times.blocked_bare))
    note = f"highest {max(times.blocked) * 1e3:.0f} ms; our own CPU time {busy:.1f} ms; beside docker run {bare:.1f} ms"
    yield within("sandbox_start", "the event loop away, longest in a start", blocked, BLOCKED_LIMIT, "ms", note)


def _taken(times: Times) -> Iterable[Row]:
    note = f"highest {max(times.adopted) * 1e3:.0f} ms; the engine alone {_milliseconds(times.engine):.1f} ms"
    adopted = _milliseconds(times.adopted)
    yield within("sandbox_start", "a waiting one adopted", adopted, ADOPTION_LIMIT, "ms", note, failure=times.made)
    note = f"within 2 s of its last answer {_milliseconds(times.running):.2f} ms"
    verified = _milliseconds(times.verified)
    yield within("sandbox_start", "one that runs, asked first", verified, RUNNING_LIMIT, "ms", note)
    yield _told("memory of an idle one", "MiB", times.memory, "its limit", MEMORY, "desktop and browser; docker stats")


def _told(what: str, unit: str, ours: float, beside: str, other: float, note: str = "") -> Row:
    """A row that only informs."""
    return Row(
        benchmark="sandbox_start",
        measurement=what,
        unit=unit,
        result=ours,
        reference=beside,
        reference_value=other,
        note=note,
    )


def _milliseconds(seconds: list[float]) -> float:
    return median(seconds) * 1e3


async def _measure(bench: Bench, place: Corner, times: Times) -> None:
    known = {f"{kind}-{number}" for kind in ("cold", "warm") for number in range(100)}
    engine = DockerEngine()
    bare = BareRun(place, engine, bench.folder)
    began = time.perf_counter()
    async with place.sandboxes(known) as sandboxes:
        await sandboxes.acquire("cold-0")
        times.first = time.perf_counter() - began
        await sandboxes.destroy("cold-0")
        _remove((await bare.start(0))[0])
        for number in range(1, bench.pick(12, 4)):
            ours = await _cold(sandboxes, place, f"cold-{number}", times)
            theirs = await _bare(bare, number, times)
            if apart := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
                times.unlike = f"docker run was given other options: {', '.join(apart)}"
        await _running(sandboxes, place, bench.pick(10, 4), times)
        await _engine_alone(engine, bare, bench.pick(7, 3), times)
    async with place.sandboxes(known, pool_size=1) as sandboxes:
        for number in range(1, bench.pick(8, 3)):
            await _adopt(sandboxes, place, engine, f"warm-{number}", times)
    engine.close()


async def _cold(sandboxes: DockerSandboxes, place: Corner, session: str, times: Times) -> dict[str, object]:
    """Start one from nothing; answers the options of its container."""
    name = place.names.of_session(session)
    began = time.perf_counter()
    async with Ticker() as ticker:
        await sandboxes.acquire(session)
    times.cold.append(time.perf_counter() - began)
    times.blocked.append(ticker.longest)
    times.busy.append(ticker.busiest)
    await _parts(_status(place, name), began, times.parts)
    options = options_of(name)
    await sandboxes.destroy(session)
    await asyncio.sleep(_PAUSE_SECONDS)
    return options


async def _bare(bare: BareRun, number: int, times: Times) -> dict[str, object]:
    """As `_cold`, with the command line."""
    began = time.perf_counter()
    async with Ticker() as ticker:
        name, status = await bare.start(number)
    times.bare.append(time.perf_counter() - began)
    times.blocked_bare.append(ticker.longest)
    await _parts(status, began, times.parts_bare)
    options = options_of(name)
    _remove(name)
    await asyncio.sleep(_PAUSE_SECONDS)
    return options


async def _parts(status: Status, began: float, found: dict[str, list[float]]) -> None:
    for part, seconds in found.items():
        seconds.append(await status.until(part) - began)


async def _running(sandboxes: DockerSandboxes, place: Corner, times_over: int, times: Times) -> None:
    """Ask again and again for one that runs, and look at its memory meanwhile."""
    await sandboxes.acquire("warm-0")
    await _status(place, place.names.of_session("warm-0")).until("browser")
    for _ in range(times_over):
        await asyncio.sleep(_FRESH_SECONDS)
        for seconds in (times.verified, times.running):
            began = time.perf_counter()
            await sandboxes.acquire("warm-0")
            seconds.append(time.perf_counter() - began)
    used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", place.names.of_session("warm-0"))
    found = re.match(r"([\d.]+)MiB", used)
    if found is None:
        raise CannotRun(f"docker stats told {used!r}")
    times.memory = float(found[1])
    await sandboxes.destroy("warm-0")


async def _engine_alone(engine: DockerEngine, bare: BareRun, times_over: int, times: Times) -> None:
    """Time what an adoption asks of the engine, with nothing else going on."""
    name, _ = await bare.start(99)
    for number in range(times_over):
        began = time.perf_counter()
        await engine.container(f"{name}-{number}")
        await engine.get_or_create_volume(f"{name}-{number}", {})
        await engine.rename_container(name, f"{name}-{number}")
        times.engine.append(time.perf_counter() - began)
        name = f"{name}-{number}"
    _remove(name)


async def _adopt(sandboxes: DockerSandboxes, place: Corner, engine: DockerEngine, session: str, times: Times) -> None:
    """Have a waiting sandbox, which has settled, become the session's."""
    waiting = await _waiting(place, engine)
    status = _status(place, waiting)
    await status.until("browser")
    await asyncio.sleep(_SETTLE_SECONDS)
    computer = inspect(waiting)["Id"]
    began = time.perf_counter()
    sandbox = await sandboxes.acquire(session)
    times.adopted.append(time.perf_counter() - began)
    if sandbox.instance_id != computer:
        times.made = "a new one, while another waited"
    await sandboxes.destroy(session)


async def _waiting(place: Corner, engine: DockerEngine) -> str:
    """The name of the container that waits, once there is one."""
    async with asyncio.timeout(_SECONDS):
        while True:
            for each in await engine.containers(place.names.ownership):
                if each.running and is_pooled(each):
                    return each.name
            await asyncio.sleep(0.1)


def _status(place: Corner, name: str) -> Status:
    inspected = inspect(name)
    return Status(inspected["NetworkSettings"]["Networks"][place.network]["IPAddress"], token_of(inspected))


def _remove(name: str) -> None:
    """A bare container with its volume."""
    docker("rm", "--force", name)


class Ticker:
    """How long the event loop was away at most, seconds. Entered around what might keep it."""

    def __init__(self) -> None:
        self.longest = self.busiest = 0.0
        self._ticks: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Ticker":
        self._ticks = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._ticks is not None
        await asyncio.sleep(2 * _TICK_SECONDS)  # it may be late just now
        self._ticks.cancel()
        await asyncio.wait({self._ticks})

    async def _tick(self) -> None:
        while True:
            before, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(_TICK_SECONDS)
            self.longest = max(self.longest, time.perf_counter() - before - _TICK_SECONDS)
            self.busiest = max(self.busiest, time.process_time() - used)
