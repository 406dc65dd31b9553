"""One session's events to a hundred readers, beside a bare ASGI application that sends ready bytes to as many."""

import json
from collections.abc import Iterable

from bench.events import fill
from bench.harness import Bench, CannotRun, Running, first_line, median
from bench.report import Row

READERS = 100
SHARE = 0.7
BURST = 20


def run(bench: Bench) -> Iterable[Row]:
    """Live with bursts and one by one, a stored history, and the peer, in turn."""
    events = bench.pick(2_000, 1_000)
    data_dir = bench.path("data")
    fill(data_dir, {"stored": events})
    rates: dict[str, list[float]] = {"bursts": [], "single": [], "stored": [], "bare": []}
    with (
        bench.program("bench.programs.bare") as bare,
        bench.spawn(["-m", "bench.programs.bursts"], {"DATA_DIR": str(data_dir)}) as (process, log),
    ):
        service = Running(process, first_line(process, log).strip(), log)
        for _ in range(bench.pick(3, 2)):
            rates["bare"].append(_rate(bench, bare, f"/stream?n={events}", events, go="/go"))
            rates["bursts"].append(_live(bench, service, events, BURST))
            rates["stored"].append(_rate(bench, service, "/api/v1/sessions/stored/events", events))
            rates["single"].append(_live(bench, service, events, 1))
    words = {
        "bursts": f"live, {BURST} events a commit",
        "single": "live, 1 event a commit",
        "stored": "a stored history",
    }
    for name, what in words.items():
        yield Row(
            benchmark="fanout",
            what=f"{what}, to {READERS} readers",
            unit="events/s",
            ours=median(rates[name]),
            beside="bare ASGI",
            other=median(rates["bare"]),
            at_least=SHARE,
            note=f"{events:,} events of 1.2 KB",
        )


def _live(bench: Bench, service: Running, events: int, each: int) -> float:
    with service.connect() as connection:
        session = connection.new_session()
    go = f"/bench/burst/{session}/{events}/{each}"
    return _rate(bench, service, f"/api/v1/sessions/{session}/events", events, go=go)


def _rate(bench: Bench, server: Running, path: str, events: int, *, go: str = "") -> float:
    """Events a second that reached the readers. `go` is asked for once all of them are there, and the time counts from
    the first event; without it the time counts from the readers' first request."""
    arguments = ["-m", "bench.programs.readers", server.url + path, str(READERS), str(events)]
    with bench.spawn(arguments, {}) as (process, log):
        if first_line(process, log) != "ready\n":
            raise CannotRun(f"the readers did not connect: {log.read_text()}")
        if go:
            with server.connect() as connection:
                connection.ask("GET", go)
        times = json.loads(first_line(process, log))
    return READERS * events / (times["last"] - times["first" if go else "asked"])
