"""Measure the service's time in a tool turn: from a model response to the next model request, without the sandbox."""

import threading
from collections.abc import Iterable, Sequence

from bench.harness import Bench, CannotRun, Disk, RunningProcess, median, model_settings, percentile, sandbox_settings
from bench.report import Row, within

LIMIT = 3.0
"""Limit in milliseconds."""

MAX_GROWTH = 1.3
"""Maximum ratio of a late turn to an early one."""

EARLY = 50
"""Number of the early turn."""

Interval = Sequence[float]

_UNLIMITED = {"RUN_MAX_CALLS": "100000", "MODEL_CONTEXT_TOKENS": "10000000"}
"""Settings with which a run neither pauses nor compacts its transcript."""


def run(bench: Bench) -> Iterable[Row]:
    """Measure two runs whose turns alternate: one around turn 50, the other far along."""
    late, window = bench.pick(2_000, 200), bench.pick(80, 50)
    tracks = {"early": EARLY - window // 2, "late": late - window // 2}
    with bench.sandbox_stand_in() as sandbox:
        arguments = [str(window), *(f"{name}={turns}" for name, turns in tracks.items())]
        with bench.program("bench.programs.turns", *arguments) as model:
            with bench.service(model_settings(model) | sandbox_settings(sandbox) | _UNLIMITED) as service:
                _chat_at_once(service, tracks)
            with model.connect() as connection:
                turns = connection.json("GET", "/bench/turns")
            with sandbox.connect() as connection:
                execs = connection.json("GET", "/bench/execs")
    disk = Disk(bench.folder)
    for _ in range(200):
        disk.commit()
    own = {name: [_own(turn, execs) for turn in turns[name]["turns"]] for name in tracks}
    if any(len(times) != window for times in own.values()):
        raise CannotRun(f"turns are missing: {own}; {service.log.read_text()[-2000:]}")
    for name, turn in (("early", EARLY), ("late", late)):
        spread = f"p10 {percentile(own[name], 0.1):.1f}, p95 {percentile(own[name], 0.95):.1f} ms"
        note = f"{spread}; request {turns[name]['bytes'] / 1e3:,.0f} KB"
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


def _chat_at_once(service: RunningProcess, names: Iterable[str]) -> None:
    """Run one chat for each name at the same time, and read each to its end."""

    def chat(name: str) -> None:
        with service.connect() as connection:
            path = f"/api/v1/sessions/{connection.new_session()}/chat"
            connection.request("POST", path, {"message": f"Do bench-{name}."})

    threads = [threading.Thread(target=chat, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _own(turn: Interval, execs: Sequence[Interval]) -> float:
    """Return the milliseconds of the turn without the sandbox's time."""
    sent, asked = turn
    sandbox = sum(answered - arrived for arrived, answered in execs if sent <= arrived <= asked)
    return (asked - sent - sandbox) * 1e3
