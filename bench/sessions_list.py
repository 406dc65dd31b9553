"""Measure the list of sessions when there are many and each has a history."""

import time
from collections.abc import Iterable

from bench.events import fill
from bench.harness import Bench, CannotRun, median, percentile
from bench.report import Row, within

LIMIT = 5.0
"""Limit in milliseconds."""

SESSIONS, EVENTS = 100, 100


def run(bench: Bench) -> Iterable[Row]:
    """Measure the first page, which has them all, in turn with a bare ASGI application that sends as many bytes."""
    data_dir = bench.path("data")
    fill(data_dir, {f"s{number}": EVENTS for number in range(SESSIONS)})
    times: list[float] = []
    floor: list[float] = []
    with bench.program("bench.programs.bare") as bare, bench.service(data_dir=data_dir) as service:
        with service.connect() as ours, bare.connect() as peer:
            answer = ours.request("GET", "/api/v1/sessions")
            if answer.count(b'"session_id"') != SESSIONS:
                raise CannotRun("the list does not hold every session")
            for _ in range(bench.pick(300, 100)):
                began = time.perf_counter()
                ours.request("GET", "/api/v1/sessions")
                times.append((time.perf_counter() - began) * 1e3)
                began = time.perf_counter()
                peer.request("GET", f"/bytes?n={len(answer)}")
                floor.append((time.perf_counter() - began) * 1e3)
    note = f"p95 {percentile(times, 0.95):.1f} ms; bare ASGI {median(floor):.1f} ms"
    what = f"GET /sessions, {SESSIONS} of {EVENTS} events"
    yield within("sessions_list", what, median(times), LIMIT, "ms", note)
