"""A hundred sessions at once in one process: what they cost it in CPU time."""

import asyncio
import json
import re
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.harness import Bench, CannotRun, Running, answered, median, model_settings, sandbox_settings
from bench.report import Row, within

LIMIT = 4.0
SESSIONS, CALLS = 100, 4
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one round: CPU seconds of the service, seconds until the last session was done, and how many sessions had a
    call that failed, with the reason of the last of them."""

    cpu: float
    wall: float
    failed: int
    reason: str


def run(bench: Bench) -> Iterable[Row]:
    """A fresh service each time; the two sandboxes in turn."""
    costs: dict[str, list[Cost]] = {"stand-in sandbox": [], "real sandbox": []}
    for _ in range(bench.pick(3, 1)):
        costs["stand-in sandbox"].append(_round(bench, bench.sandbox_stand_in()))
        costs["real sandbox"].append(_round(bench, bench.real_sandbox()))
    for sandbox, found in costs.items():
        what = f"{SESSIONS} sessions at once, {CALLS} calls each, {sandbox}"
        note = f"wall {median([cost.wall for cost in found]):.1f} s"
        worst = max(found, key=lambda cost: cost.failed)
        broken = f"{worst.failed} sessions had failing calls: {worst.reason}" if worst.failed else ""
        cpu = median([cost.cpu for cost in found])
        yield within("many", what, cpu, LIMIT, "CPU s", note, broken=broken)


def _round(bench: Bench, one_sandbox: AbstractContextManager[Running]) -> Cost:
    call = ["shell_exec", {"id": "main", "exec_dir": "~", "command": "echo done"}]
    script = ["--steps", "1", "--calls", json.dumps([call] * CALLS)]
    with one_sandbox as sandbox, bench.program("tests.fakes.scripted_openai", *script) as model:
        with bench.service(model_settings(model) | sandbox_settings(sandbox)) as service:
            answered(service, "/health")
            before, began = service.cpu_seconds(), time.monotonic()
            streams = asyncio.run(_chats(service))
            cpu, wall = service.cpu_seconds() - before, time.monotonic() - began
    reasons = [reason for stream in streams if (reason := _failure(stream))]
    return Cost(cpu, wall, len(reasons), reasons[-1] if reasons else "")


async def _chats(service: Running) -> list[bytes]:
    with service.connect() as connection:
        sessions = [connection.new_session() for _ in range(SESSIONS)]
    async with asyncio.timeout(_SECONDS):
        return await asyncio.gather(*(_chat(service.url, session) for session in sessions))


def _failure(stream: bytes) -> str:
    """Why a tool call of this chat failed; empty when all went well.

    Raises:
        CannotRun: the run itself did not end as it should.
    """
    if stream.count(b"\nevent: done\n") != 1 or stream.count(b'"status":"called"') != CALLS:
        raise CannotRun(f"a session was not done: {stream[-2000:]!r}")
    failed = re.search(rb'"success":false,"message":"([^(":]{1,60})', stream)
    return failed[1].decode() if failed else ""


async def _chat(url: str, session: str) -> bytes:
    """The whole stream of a chat."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = b'{"message":"Do it."}'
    head = f"POST /api/v1/sessions/{session}/chat HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    stream = await reader.read()
    writer.close()
    return stream
