"""The process monitor: measures the lag of the event loop, and checks in the background which dependencies work."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.application.run_monitor import Histogram

LAG_SECONDS = 0.5
"""Time between two measurements of the event loop's lag, in seconds."""

CHECK_INTERVAL_SECONDS = 10.0
"""Time between two checks of the dependencies, in seconds."""

CHECK_SECONDS = 5.0
"""Maximum time of the check of one dependency, in seconds."""

_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

Check = Callable[[], Awaitable[str | None]]
"""Checks one dependency: returns None if it can be used now, else the reason why not."""


@dataclass(frozen=True, slots=True)
class ProcessMetrics:
    """Measurements of the monitor. A scrape reads it and waits for nothing."""

    lag: Histogram = field(default_factory=lambda: Histogram(_BOUNDS))
    """Time by which the event loop was late, in seconds."""
    is_up: dict[str, bool] = field(default_factory=dict[str, bool])
    """Whether each dependency could be used at its last check."""


@asynccontextmanager
async def monitor_process(metrics: ProcessMetrics, checks: Mapping[str, Check]) -> AsyncGenerator[None]:
    """Measure and check until the block ends."""
    tasks = [asyncio.create_task(_measure_lag(metrics.lag), name="loop lag")]
    tasks += [asyncio.create_task(_check_forever(metrics, name, check)) for name, check in checks.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _measure_lag(lag: Histogram) -> None:
    now = asyncio.get_running_loop().time
    while True:
        due = now() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        lag.observe(max(0.0, now() - due))


async def _check_forever(metrics: ProcessMetrics, name: str, check: Check) -> None:
    while True:
        await asyncio.sleep(CHECK_INTERVAL_SECONDS if name in metrics.is_up else LAG_SECONDS)
        metrics.is_up[name] = await reason_of(check) is None


async def reason_of(check: Check) -> str | None:
    """Return why a dependency cannot be used now; None if it can. Takes a bounded time."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check()
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} s"
