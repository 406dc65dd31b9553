"""Write a run's events beside readers that do not read; compare with the same run alone."""

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from app.interfaces.http_connection import TICKS
from bench.harness import Bench, CannotRun, RunningProcess, first_line, median
from bench.report import Row

READERS = 500

EVENTS = 11_000
"""Number of events of the run: 13.7 MB."""

EVENT_BYTES = 1245
"""Size of an encoded event."""

EACH = 20
"""Number of events of each commit."""

MAX_ADDED_SECONDS = 0.7
"""Maximum time that the readers add: a third of the 2.1 s in which an agent's run writes these events.

The burst that stands for a run takes less, because it makes no calls.
"""

MAX_MEGABYTES = 80
"""Maximum growth of the memory beside the readers: about 160 KB a reader."""

TRIM_SECONDS = 2 * TICKS / 10
"""Time after which the service has given free memory back, in seconds."""

MAX_LEFT_MEGABYTES = 32
"""Maximum growth of the memory that remains after the readers have left."""


def run(bench: Bench) -> Iterable[Row]:
    """Measure runs alone and beside unread streams, in turn, on one service; then its memory."""
    settings = {"DATA_DIR": str(bench.path("data"))}
    alone: list[float] = []
    beside: list[float] = []
    grown: list[float] = []
    with bench.spawn(["-m", "bench.programs.bursts"], settings) as (process, log):
        service = RunningProcess(process, first_line(process, log).strip(), log)
        _write(service, _session(service))  # the first run also warms up
        before = service.rss_megabytes()
        for _ in range(bench.pick(3, 1)):
            alone.append(_write(service, _session(service)))
            session = _session(service)
            with _unread_streams(service, session):
                beside.append(_write(service, session))
                grown.append(service.rss_megabytes() - before)
            _wait_for_streams(service, 0)
        time.sleep(TRIM_SECONDS)
        left = service.rss_megabytes() - before
    note = f"{EVENTS * EVENT_BYTES / 1e6:.1f} MB of events, {READERS} readers that do not read"
    added = median(beside) - median(alone)
    yield Row(
        benchmark="unread",
        measurement="time added by readers",
        unit="s",
        result=max(added, 0.0),
        reference="limit",
        reference_value=MAX_ADDED_SECONDS,
        at_most=1,
        note=f"{note}; alone {median(alone):.2f} s",
    )
    for measurement, value, limit in (
        ("memory beside readers", max(grown), MAX_MEGABYTES),
        ("memory after them", left, MAX_LEFT_MEGABYTES),
    ):
        yield Row(
            benchmark="unread",
            measurement=measurement,
            unit="MB",
            result=max(value, 0.0),
            reference="limit",
            reference_value=limit,
            at_most=1,
            note=note,
        )


def _session(service: RunningProcess) -> str:
    with service.connect() as connection:
        return connection.new_session()


def _write(service: RunningProcess, session: str) -> float:
    """Return the seconds in which the service stores the run's events."""
    with service.connect() as connection:
        began = time.perf_counter()
        connection.request("GET", f"/bench/burst/{session}/{EVENTS}/{EACH}")
        return time.perf_counter() - began


@contextmanager
def _unread_streams(service: RunningProcess, session: str) -> Iterator[None]:
    address = urlsplit(service.url)
    request = f"GET /api/v1/sessions/{session}/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
    sockets: list[socket.socket] = []
    try:
        for _ in range(READERS):
            sockets.append(socket.create_connection((address.hostname or "", address.port or 0)))
            sockets[-1].sendall(request)
        _wait_for_streams(service, READERS)
        yield
    finally:
        for each in sockets:
            each.close()


def _wait_for_streams(service: RunningProcess, count: int) -> None:
    deadline = time.monotonic() + 30
    with service.connect() as connection:
        while f"anker_streams_open {float(count)}" not in connection.request("GET", "/metrics").decode():
            if time.monotonic() > deadline:
                raise CannotRun(f"the service does not have {count} open streams")
            time.sleep(0.05)
