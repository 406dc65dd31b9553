"""Measure from POST chat to the first event. The model responds at once; the event is on disk before it is sent."""

import time
from collections.abc import Iterable

from bench.client import Connection
from bench.harness import Bench, Disk, median, model_settings, percentile
from bench.report import Row, within

LIMIT = 8.0
"""Limit in milliseconds."""

_TITLE = b"\nevent: title\n"


def run(bench: Bench) -> Iterable[Row]:
    """Measure new sessions, in turn with a bare ASGI application that streams at once."""
    disk, times, floor = Disk(bench.folder), [], []
    with (
        bench.program("tests.fakes.scripted_openai", "--steps", "0") as model,
        bench.program("bench.programs.bare") as bare,
        bench.service(model_settings(model)) as service,
        service.connect() as ours,
        bare.connect() as peer,
    ):
        for _ in range(10):
            _first(ours)
        for _ in range(bench.pick(200, 60)):
            times.append(_first(ours))
            floor.append(_bare(peer))
            disk.commit()
    spread = f"p10 {percentile(times, 0.1):.1f}, p95 {percentile(times, 0.95):.1f} ms"
    note = f"{spread}; bare ASGI {median(floor):.1f} ms; {disk}"
    yield within("first_event", "POST chat to first event, p50", median(times), LIMIT, "ms", note)


def _first(connection: Connection) -> float:
    session = connection.new_session()
    began = time.perf_counter()
    connection.send("POST", f"/api/v1/sessions/{session}/chat", {"message": "Hello"})
    connection.read_until(_TITLE)
    taken = time.perf_counter() - began
    connection.read_response()
    return taken * 1e3


def _bare(connection: Connection) -> float:
    began = time.perf_counter()
    connection.send("POST", "/first", {"message": "Hello"})
    connection.read_until(_TITLE)
    taken = time.perf_counter() - began
    connection.read_response()
    return taken * 1e3
