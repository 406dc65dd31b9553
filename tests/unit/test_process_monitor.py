"""What the process monitor measures."""

import asyncio
import time

from app.application.process_monitor import LAG_SECONDS, ProcessMetrics, monitor_process
from tests.support.eventually import eventually

BLOCKED = 1.1
"""Seconds for which the test blocks the event loop; above a bound of the histogram, so that load changes nothing."""


async def test_blocked_event_loop_is_measured_as_lag() -> None:
    metrics = ProcessMetrics()
    async with monitor_process(metrics, {}):
        await asyncio.sleep(0)  # the first measurement begins
        time.sleep(BLOCKED + LAG_SECONDS)  # the measurement is due after the second part
        await eventually(lambda: any(metrics.lag.counts))
    late = [count for bound, count in zip(metrics.lag.bounds, metrics.lag.counts, strict=False) if bound <= 1.0]
    assert (sum(metrics.lag.counts), sum(late)) == (1, 0)
    assert metrics.lag.sum >= BLOCKED


async def test_dependency_is_reported_as_its_last_check_found_it() -> None:
    metrics = ProcessMetrics()

    async def works() -> None:
        return None

    async def fails() -> str:
        return "no connection"

    async with monitor_process(metrics, {"store": works, "redis": fails}):
        await eventually(lambda: len(metrics.is_up) == 2)
    assert metrics.is_up == {"store": True, "redis": False}
