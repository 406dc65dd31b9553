"""Read a session's events: a whole history, and the newest page of a short and of a very long one."""

import time
from collections.abc import Iterable

from bench.client import Connection
from bench.events import fill
from bench.harness import Bench, median, percentile
from bench.report import Row, within

LIMIT = 20.0
"""Limit in milliseconds for a whole history."""

MAX_GROWTH = 1.3
"""Maximum ratio of the newest page of the long history to that of the short one."""

WHOLE, SHORT, LONG = 5_000, 100, 100_000
"""Numbers of events."""


def run(bench: Bench) -> Iterable[Row]:
    """Fill a store, start the service on it, and measure."""
    data_dir = bench.path("data")
    fill(data_dir, {"whole": WHOLE, "long": LONG, "short": SHORT})
    with bench.program("bench.programs.bare") as bare, bench.service(data_dir=data_dir) as service:
        with service.connect() as ours, bare.connect() as peer:
            size = len(ours.request("GET", "/api/v1/sessions/whole"))
            whole: list[float] = []
            floor: list[float] = []
            for _ in range(bench.pick(60, 20)):
                whole.append(_timed(ours, "/api/v1/sessions/whole"))
                floor.append(_timed(peer, f"/bytes?n={size}"))
            long, short = _pages(ours, bench.pick(300, 100))
    note = f"p10 {percentile(whole, 0.1):.1f} ms; {size / 1e6:.1f} MB; bare ASGI {median(floor):.1f} ms"
    yield within("history", f"GET a session of {WHOLE:,} events", median(whole), LIMIT, "ms", note)
    yield Row(
        benchmark="history",
        measurement=f"newest page of {LONG:,} events",
        unit="ms",
        result=median(long),
        reference=f"of {SHORT} events",
        reference_value=median(short),
        at_most=MAX_GROWTH,
        note="measured in turn",
    )


def _pages(connection: Connection, repetitions: int) -> tuple[list[float], list[float]]:
    long: list[float] = []
    short: list[float] = []
    for _ in range(repetitions):
        long.append(_timed(connection, "/api/v1/sessions/long?tail=100"))
        short.append(_timed(connection, "/api/v1/sessions/short?tail=100"))
    return long, short


def _timed(connection: Connection, path: str) -> float:
    began = time.perf_counter()
    connection.request("GET", path)
    return (time.perf_counter() - began) * 1e3
