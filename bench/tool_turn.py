"""Measure the service's time in a tool turn: from a model response to the next model request, without the sandbox."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from bench.harness import Bench, CannotRun, Disk, RunningProcess, median, model_settings, percentile, sandbox_settings
from bench.report import Row, within
from tests.support.collector import Collector

LIMIT = 3.0
"""Limit in milliseconds."""

MAX_GROWTH = 1.3
"""Maximum ratio of a late turn to an early one."""

MAX_TRACED = 1.5
"""Maximum ratio of a turn with a trace to one without."""

EARLY = 50
"""Number of the early turn."""

Interval = Sequence[float]

_UNLIMITED = {"RUN_MAX_CALLS": "100000", "MODEL_CONTEXT_TOKENS": "10000000"}
"""Settings with which a run neither pauses nor compacts its transcript."""


def run(bench: Bench) -> Iterable[Row]:
    """Measure two runs whose turns alternate: one around turn 50, the other far along; then two around turn 50."""
    late, window = bench.pick(2_000, 200), bench.pick(80, 50)
    own, sizes = _measure(bench, window, {"early": EARLY - window // 2, "late": late - window // 2})
    disk = Disk(bench.folder)
    for _ in range(200):
        disk.commit()
    for name, turn in (("early", EARLY), ("late", late)):
        spread = f"p10 {percentile(own[name], 0.1):.1f}, p95 {percentile(own[name], 0.95):.1f} ms"
        note = f"{spread}; request {sizes[name] / 1e3:,.0f} KB"
        yield within("tool_turn", f"own time at turn {turn:,}", median(own[name]), LIMIT, "ms", note)
    yield Row(
        benchmark="tool_turn",
        measurement=f"turn {late:,} compared with turn {EARLY}",
        unit="ms",
        result=median(own["late"]),
        reference=f"turn {EARLY}",
        reference_value=median(own["early"]),
        at_most=MAX_GROWTH,
        note=f"measured in turn; {disk}",
    )
    yield _compare_tracing(bench, window)


def _compare_tracing(bench: Bench, window: int) -> Row:
    with Collector() as collector:
        traced = {"traced": {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}}
        own, _ = _measure(bench, window, dict.fromkeys(("untraced", "traced"), EARLY - window // 2), traced)
        count = len(collector.spans)
    return Row(
        benchmark="tool_turn",
        measurement="with a trace compared with without",
        unit="ms",
        result=median(own["traced"]),
        reference="without a trace",
        reference_value=median(own["untraced"]),
        at_most=MAX_TRACED,
        note=f"two services, measured in turn; {count} spans received",
        failure="" if count else "no span was received",
    )


def _measure(
    bench: Bench, window: int, tracks: Mapping[str, int], more: Mapping[str, Mapping[str, str]] | None = None
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the own times of each track in milliseconds, and the size of its last request in bytes.

    Args:
        bench: The bench.
        window: Number of turns to measure.
        tracks: Number of turns before them, by the name of the track.
        more: Further settings of the tracks that run in a service of their own.
    """
    with bench.sandbox_stand_in() as sandbox, ExitStack() as stack:
        arguments = [str(window), *(f"{name}={turns}" for name, turns in tracks.items())]
        model = stack.enter_context(bench.program("bench.programs.turns", *arguments))
        settings = model_settings(model) | sandbox_settings(sandbox) | _UNLIMITED
        shared = stack.enter_context(bench.service(settings))
        services = dict.fromkeys(tracks, shared)
        for name, further in (more or {}).items():
            services[name] = stack.enter_context(bench.service(settings | dict(further)))
        _chat_at_once(services)
        with model.connect() as connection:
            turns = connection.json("GET", "/bench/turns")
        with sandbox.connect() as connection:
            execs = connection.json("GET", "/bench/execs")
    own = {name: [_own(turn, execs) for turn in turns[name]["turns"]] for name in tracks}
    if any(len(times) != window for times in own.values()):
        raise CannotRun(f"turns are missing: {own}; {shared.log.read_text()[-2000:]}")
    return own, {name: turns[name]["bytes"] for name in tracks}


def _chat_at_once(services: Mapping[str, RunningProcess]) -> None:
    """Run one chat for each name at the same time, in its service, and read each to its end."""

    def chat(name: str) -> None:
        with services[name].connect() as connection:
            path = f"/api/v1/sessions/{connection.new_session()}/chat"
            connection.request("POST", path, {"message": f"Do bench-{name}."})

    threads = [threading.Thread(target=chat, args=(name,)) for name in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _own(turn: Interval, execs: Sequence[Interval]) -> float:
    """Return the milliseconds of the turn without the sandbox's time."""
    sent, asked = turn
    sandbox = sum(answered - arrived for arrived, answered in execs if sent <= arrived <= asked)
    return (asked - sent - sandbox) * 1e3
