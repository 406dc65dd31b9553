"""Measure the CPU time of a hundred concurrent sessions in one process."""

import asyncio
import json
import re
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.harness import Bench, CannotRun, RunningProcess, median, model_settings, sandbox_settings, wait_for_response
from bench.report import Row, within

LIMIT = 4.0
"""Limit in CPU seconds of the service."""

SESSIONS, CALLS = 100, 4
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Cost:
    """The result of one round.

    `cpu` are CPU seconds of the service, `wall` seconds until the last session ended. `failed` counts the sessions in
    which a tool call failed; `reason` is that of the last one.
    """

    cpu: float
    wall: float
    failed: int
    reason: str


def run(bench: Bench) -> Iterable[Row]:
    """Measure rounds with a new service each, with the two sandboxes in turn."""
    costs: dict[str, list[Cost]] = {"stand-in sandbox": [], "real sandbox": []}
    for _ in range(bench.pick(3, 1)):
        costs["stand-in sandbox"].append(_round(bench, bench.sandbox_stand_in()))
        costs["real sandbox"].append(_round(bench, bench.real_sandbox()))
    for sandbox, found in costs.items():
        what = f"{SESSIONS} sessions at once, {CALLS} calls each, {sandbox}"
        note = f"wall {median([cost.wall for cost in found]):.1f} s"
        worst = max(found, key=lambda cost: cost.failed)
        failure = f"{worst.failed} sessions had failed tool calls: {worst.reason}" if worst.failed else ""
        cpu = median([cost.cpu for cost in found])
        yield within("many", what, cpu, LIMIT, "CPU s", note, failure=failure)


def _round(bench: Bench, one_sandbox: AbstractContextManager[RunningProcess]) -> Cost:
    call = ["shell_exec", {"id": "main", "exec_dir": "~", "command": "echo done"}]
    script = ["--steps", "1", "--calls", json.dumps([call] * CALLS)]
    with one_sandbox as sandbox, bench.program("tests.fakes.scripted_openai", *script) as model:
        with bench.service(model_settings(model) | sandbox_settings(sandbox)) as service:
            wait_for_response(service, "/health")
            before, began = service.cpu_seconds(), time.monotonic()
            streams = asyncio.run(_chats(service))
            cpu, wall = service.cpu_seconds() - before, time.monotonic() - began
    reasons = [reason for stream in streams if (reason := _failure(stream))]
    return Cost(cpu, wall, len(reasons), reasons[-1] if reasons else "")


async def _chats(service: RunningProcess) -> list[bytes]:
    with service.connect() as connection:
        sessions = [connection.new_session() for _ in range(SESSIONS)]
    async with asyncio.timeout(_SECONDS):
        return await asyncio.gather(*(_chat(service.url, session) for session in sessions))


def _failure(stream: bytes) -> str:
    """Return why a tool call of this chat failed, or an empty string.

    Raises:
        CannotRun: The run did not end with `done` and all of its calls.
    """
    if stream.count(b"\nevent: done\n") != 1 or stream.count(b'"status":"called"') != CALLS:
        raise CannotRun(f"a session did not end: {stream[-2000:]!r}")
    failed = re.search(rb'"success":false,"message":"([^(":]{1,60})', stream)
    return failed[1].decode() if failed else ""


async def _chat(url: str, session: str) -> bytes:
    """Send a message and return the whole stream."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = b'{"message":"Do it."}'
    head = f"POST /api/v1/sessions/{session}/chat HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    stream = await reader.read()
    writer.close()
    return stream
