"""Measure the start of the service and its memory when idle."""

import time
from collections.abc import Iterable

from bench.harness import Bench, RunningProcess, free_port, median, model_settings, wait_for_response
from bench.report import Row, within

START_LIMIT = 1.2
"""Limit in seconds."""

MEMORY_LIMIT = 90.0
"""Limit in units of 10^6 bytes."""

CHATS = 20
_SETTLE_SECONDS = 1.0


def run(bench: Bench) -> Iterable[Row]:
    """Measure the service with default settings, then with the real model adapter."""
    started, floor = [], []
    idle: list[float] = []
    _start(bench, "app", idle)
    idle.clear()
    for _ in range(bench.pick(5, 3)):
        started.append(_start(bench, "app", idle))
        floor.append(_start(bench, "uvicorn", []))
    note = f"highest {max(started):.2f} s; FastAPI and uvicorn alone {median(floor):.2f} s"
    yield within("start", "process start to first GET /health", median(started), START_LIMIT, "s", note)
    yield within("start", "RSS idle after the start", median(idle), MEMORY_LIMIT, "MB")
    used = _after_chats(bench)
    yield within("start", f"RSS idle after {CHATS} chats, real model adapter", used, MEMORY_LIMIT, "MB")


def _start(bench: Bench, program: str, memory: list[float]) -> float:
    """Return the seconds until the first response; append the memory a second later to `memory`."""
    port = free_port()
    commands = {
        "app": ["-m", "app"],
        "uvicorn": ["-m", "uvicorn", "fastapi:FastAPI", "--factory", "--port", str(port)],
    }
    settings = {"PORT": str(port), "DATA_DIR": str(bench.path("data"))}
    began = time.monotonic()
    with bench.spawn(commands[program], settings) as (process, log):
        running = RunningProcess(process, f"http://127.0.0.1:{port}", log)
        taken = wait_for_response(running, "/health" if program == "app" else "/docs") - began
        if program == "app":
            time.sleep(_SETTLE_SECONDS)
            memory.append(running.rss_megabytes())
    return taken


def _after_chats(bench: Bench) -> float:
    with bench.program("tests.fakes.scripted_openai", "--steps", "0") as model:
        with bench.service(model_settings(model)) as service, service.connect() as connection:
            for _ in range(CHATS):
                path = f"/api/v1/sessions/{connection.new_session()}/chat"
                connection.request("POST", path, {"message": "Hello"})
            time.sleep(_SETTLE_SECONDS)
            return service.rss_megabytes()
