"""Measure what sessions, streams and runs cost: memory of the service, CPU and bytes in the store."""

import json
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.harness import Bench, CannotRun, RunningProcess, model_settings, sandbox_settings, wait_for_response
from bench.report import Row

SESSIONS = 2_000
STREAMS = 400
RUNS = 100
CALLS = 20
"""Number of tool calls of each run."""

_PORTION = 50
"""Number of runs that are started together."""

_SECONDS = 120


def run(bench: Bench) -> Iterable[Row]:
    """Measure one service, whose sessions are idle, then followed, then carried out."""
    data = bench.path("data")
    # Different calls: a run that repeats itself is ended.
    calls = [["shell_exec", {"id": "main", "exec_dir": "~", "command": f"echo {n}"}] for n in range(CALLS)]
    script = ["--steps", "1", "--calls", json.dumps(calls)]
    with bench.sandbox_stand_in() as sandbox, bench.program("tests.fakes.scripted_openai", *script) as model:
        with bench.service(model_settings(model) | sandbox_settings(sandbox) | {"DATA_DIR": str(data)}) as service:
            wait_for_response(service, "/health")
            with service.connect() as connection:
                for _ in range(20):
                    connection.request("GET", "/api/v1/sessions")
                idle, disk = service.rss_megabytes(), _bytes(data)
                sessions = [connection.new_session() for _ in range(SESSIONS)]
            yield _row("idle sessions: memory of each", (service.rss_megabytes() - idle) * 1000 / SESSIONS, "KB")
            yield _row("idle sessions: disk of each", (_bytes(data) - disk) / 1000 / SESSIONS, "KB")
            yield from _streams(service, sessions)
            yield from _runs(service, sessions, data)


def _streams(service: RunningProcess, sessions: list[str]) -> Iterable[Row]:
    before, cpu = service.rss_megabytes(), service.cpu_seconds()
    with _open(service, [("GET", f"/api/v1/sessions/{each}/events", "") for each in sessions[:STREAMS]]):
        time.sleep(2)
        grown, cpu = service.rss_megabytes() - before, service.cpu_seconds()
        time.sleep(15)  # one heartbeat
        cpu = service.cpu_seconds() - cpu
    yield _row("idle streams: memory of each", grown * 1000 / STREAMS, "KB")
    yield _row("idle streams: CPU of 1,000", cpu / 15 / STREAMS * 1000 * 100, "% of a core")


def _runs(service: RunningProcess, sessions: list[str], data: Path) -> Iterable[Row]:
    """Run tasks in portions; the highest memory while they run says what an active run needs."""
    before, disk, cpu, began = service.rss_megabytes(), _bytes(data), service.cpu_seconds(), time.monotonic()
    highest, events = before, 0
    for start in range(0, RUNS, _PORTION):
        chosen = sessions[start : start + _PORTION]
        requests = [
            ("POST", f"/api/v1/sessions/{each}/chat", '{"message":"Go through the reports."}') for each in chosen
        ]
        with _open(service, requests) as sockets:
            for each in sockets:
                events += _read_run(each)
                highest = max(highest, service.rss_megabytes())
    seconds, cpu = time.monotonic() - began, service.cpu_seconds() - cpu
    note = f"{RUNS} runs with {CALLS} tool calls each, {events:,} events, {events / seconds:,.0f} events/s"
    yield _row("active runs: memory of each", (highest - before) * 1000 / _PORTION, "KB", note)
    yield _row("a tool call: CPU", cpu * 1000 / RUNS / CALLS, "ms", note)
    yield _row("an event: disk", (_bytes(data) - disk) / 1000 / events, "KB", f"{note}; transcripts included")


@contextmanager
def _open(service: RunningProcess, requests: list[tuple[str, str, str]]) -> Iterator[list[socket.socket]]:
    address = urlsplit(service.url)
    sockets: list[socket.socket] = []
    try:
        for method, path, body in requests:
            connection = socket.create_connection((address.hostname or "", address.port or 0), timeout=_SECONDS)
            sockets.append(connection)
            head = f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        yield sockets
    finally:
        for each in sockets:
            each.close()


def _read_run(connection: socket.socket) -> int:
    """Read a chat stream to its end and return the number of its events."""
    stream = b""
    while b"event: done\n" not in stream:
        received = connection.recv(1 << 16)
        if not received or b"event: error" in stream:
            raise CannotRun(f"a run did not end: {stream[-500:]!r}")
        stream += received
    return stream.count(b"\nevent: ")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("anker.db*"))


def _row(measurement: str, value: float, unit: str, note: str = "") -> Row:
    return Row(
        benchmark="sizing",
        measurement=measurement,
        unit=unit,
        result=max(value, 0.0),
        reference="",
        reference_value=0,
        note=note,
    )
