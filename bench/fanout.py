"""Stream one session's events to a hundred readers; compare with a bare ASGI application that sends encoded events."""

import json
from collections.abc import Iterable

from bench.events import fill
from bench.harness import Bench, CannotRun, RunningProcess, first_line, median
from bench.report import Row

READERS = 100

MIN_RATIO = 0.7
"""Minimum of our events per second / those of bare ASGI."""

BURST = 20
"""Number of events of each commit in the burst measurement."""


def run(bench: Bench) -> Iterable[Row]:
    """Measure live streams in bursts and event by event, a stored history, and bare ASGI, in turn."""
    events = bench.pick(2_000, 1_000)
    data_dir = bench.path("data")
    fill(data_dir, {"stored": events})
    rates: dict[str, list[float]] = {"bursts": [], "single": [], "stored": [], "bare": []}
    with (
        bench.program("bench.programs.bare") as bare,
        bench.spawn(["-m", "bench.programs.bursts"], {"DATA_DIR": str(data_dir)}) as (process, log),
    ):
        service = RunningProcess(process, first_line(process, log).strip(), log)
        for _ in range(bench.pick(3, 2)):
            rates["bare"].append(_rate(bench, bare, f"/stream?n={events}", events, go="/go"))
            rates["bursts"].append(_live(bench, service, events, BURST))
            rates["stored"].append(_rate(bench, service, "/api/v1/sessions/stored/events", events))
            rates["single"].append(_live(bench, service, events, 1))
    measurements = {
        "bursts": f"live, {BURST} events a commit",
        "single": "live, 1 event a commit",
        "stored": "a stored history",
    }
    for name, measurement in measurements.items():
        yield Row(
            benchmark="fanout",
            measurement=f"{measurement}, to {READERS} readers",
            unit="events/s",
            result=median(rates[name]),
            reference="bare ASGI",
            reference_value=median(rates["bare"]),
            at_least=MIN_RATIO,
            note=f"{events:,} events of 1.2 KB",
        )


def _live(bench: Bench, service: RunningProcess, events: int, each: int) -> float:
    with service.connect() as connection:
        session = connection.new_session()
    go = f"/bench/burst/{session}/{events}/{each}"
    return _rate(bench, service, f"/api/v1/sessions/{session}/events", events, go=go)


def _rate(bench: Bench, server: RunningProcess, path: str, events: int, *, go: str = "") -> float:
    """Return the events per second that reached all readers.

    With `go`, that path is requested once all readers are connected, and time starts with the first event. Without it,
    time starts with the first request.
    """
    arguments = ["-m", "bench.programs.readers", server.url + path, str(READERS), str(events)]
    with bench.spawn(arguments, {}) as (process, log):
        if first_line(process, log) != "ready\n":
            raise CannotRun(f"the readers did not connect: {log.read_text()}")
        if go:
            with server.connect() as connection:
                connection.request("GET", go)
        times = json.loads(first_line(process, log))
    return READERS * events / (times["last"] - times["first" if go else "asked"])
