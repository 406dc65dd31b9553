"""Measure what masking the service's own secrets costs: for a tool call, for a long output and for streamed text."""

import time
from collections.abc import Callable, Iterable
from secrets import token_urlsafe

from app.domain.external.llm import ModelReply
from app.domain.models.event import ToolCalledEvent, ToolCallingEvent
from app.domain.models.message import AssistantMessage, ToolCall, ToolMessage
from app.domain.models.plan import Plan, Step
from app.domain.models.run import Checkpoint
from app.domain.models.tool import OpenCall, ToolResult
from app.domain.repositories.event_log import Commit
from app.infrastructure.secrets.known_secrets import KnownSecrets
from bench.harness import Bench, median
from bench.report import Row, within

TURN_LIMIT = 150.0
"""Limit in microseconds for a tool call: 5 % of the limit for the service's own time, without model and sandbox."""

OUTPUT_LIMIT = 4.0
"""Limit in milliseconds for an event of 200 KB."""

DELTA_LIMIT = 30.0
"""Limit in microseconds for a piece of streamed text."""

_LINE = "-rw-r--r-- 1 ubuntu ubuntu 4096 Nov 27 10:52 report-2026.txt\n"
_PROSE = "The reports are in order, and nothing unusual was found in any of them. "


def run(bench: Bench) -> Iterable[Row]:
    """Measure the CPU time with ten secrets, in this process."""
    mask = KnownSecrets({str(number): f"sk-{token_urlsafe(32)}" for number in range(10)})
    repetitions = bench.pick(500, 100)

    def turn(output: str) -> None:
        args = {"id": "main", "exec_dir": "~", "command": "ls -l ~/reports"}
        call = OpenCall(id="call_1", toolkit="shell", function="shell_exec", args=args)
        reply = ModelReply(tool_calls=(ToolCall(id="call_1", name="shell_exec", arguments=str(args)),))
        record = {"ps1": "ubuntu@sandbox:~ $", "command": "ls -l ~/reports", "output": output}
        result = ToolResult(text=output, data={"output": output, "returncode": 0}, content={"console": [record]})
        steps = tuple(Step(id=str(number), description="Read the next part of the reports") for number in range(5))
        checkpoint = Checkpoint(phase="executing", plan=Plan(goal="All is read", steps=steps), revision="0" * 32)
        turn = AssistantMessage(tool_calls=reply.tool_calls)
        said = ToolMessage(tool_call_id="call_1", content=output)
        mask.mask(reply)
        mask.mask(result)
        opened, called = ToolCallingEvent.of(call), ToolCalledEvent.of(call, result)
        mask.mask(Commit(timestamp=1, events=(opened,), messages=(("executor", turn),), checkpoint=checkpoint))
        mask.mask(Commit(timestamp=1, events=(called,), messages=(("executor", said),), checkpoint=checkpoint))

    short = _median_microseconds(lambda: turn(_LINE * 10), repetitions)
    yield within("masking", "a tool call with 0.6 KB of output", short, TURN_LIMIT, "us", "CPU time")
    long = _median_microseconds(lambda: mask.mask(ToolResult(text=_LINE * 3_250)), repetitions // 10) / 1e3
    yield within("masking", "a text of 200 KB", long, OUTPUT_LIMIT, "ms", "CPU time")
    words = [f"{word} " for word in (_PROSE * 4).split()]

    def stream() -> None:
        stream = mask.stream()
        for word in words:
            stream.feed(word)

    delta = _median_microseconds(stream, repetitions) / len(words)
    yield within("masking", "a piece of streamed text", delta, DELTA_LIMIT, "us", "CPU time")


def _median_microseconds(work: Callable[[], object], repetitions: int) -> float:
    times: list[float] = []
    for _ in range(repetitions):
        began = time.process_time()
        work()
        times.append((time.process_time() - began) * 1e6)
    return median(times)
