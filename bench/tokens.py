"""Measure what a fixed task of 5 steps with 4 tool calls each costs in model calls, tokens and time."""

from collections.abc import Iterable

from bench.harness import Bench, CannotRun, RunningProcess, median, sandbox_settings
from bench.report import Row, within
from tests.fakes.scripted_openai import Call, ScriptedOpenAI
from tests.support.metering import Figures, MeteredModel
from tests.support.task_models import MESSAGE, Task, TaskModel

CALLS_LIMITS = {True: 22, False: 27}
"""Maximum number of model calls, by whether the model uses every way to save one. A single loop needs 21 or 22."""

FIRST_REQUEST_LIMIT = 6.3
"""Limit in kilobytes of the first executing request: two thirds of what it was when it was first measured."""

BEFORE_KILOBYTES = 353
"""Kilobytes that this task took when it was first measured, with 27 calls."""

BEFORE_TOKENS = 99_800
"""Prompt tokens of the same run, by the count of `tests/support/metering.py`."""

OUTSIDE_LIMIT = 10.0
"""Limit in milliseconds of the median time between two model calls, a stand-in's tool calls included."""


def run(bench: Bench) -> Iterable[Row]:
    """Run the task with a model that saves calls where it can, and with one that makes one call a turn."""
    for few_calls, limit in CALLS_LIMITS.items():
        name = "few calls" if few_calls else "one call a turn"
        figures = _figures(bench, few_calls=few_calls)
        largest = f"largest prompt {figures.largest_prompt:,} tokens"
        yield within("tokens", f"model calls, {name}", figures.calls, limit, "calls", largest)
        tokens, kilobytes = figures.prompt_tokens / 1e3, figures.sent_bytes / 1e3
        yield _compared(f"prompt tokens, {name}", tokens, BEFORE_TOKENS / 1e3, "k")
        yield _compared(f"bytes of all requests, {name}", kilobytes, BEFORE_KILOBYTES, "KB")
        share = f"{figures.identical_share:.1%} of all prompt bytes repeat the request before"
        first = figures.first_executing_bytes / 1e3
        yield within("tokens", f"first executing request, {name}", first, FIRST_REQUEST_LIMIT, "KB", share)
        time = median(figures.outside_milliseconds)
        yield within(
            "tokens", f"time between model calls, {name}", time, OUTSIDE_LIMIT, "ms", "with the stand-in's calls"
        )


def _compared(measurement: str, result: float, before: float, unit: str) -> Row:
    return Row(
        benchmark="tokens",
        measurement=measurement,
        unit=unit,
        result=result,
        reference="first measured",
        reference_value=before,
        at_most=1,
    )


def _figures(bench: Bench, *, few_calls: bool) -> Figures:
    model = MeteredModel(TaskModel(Task(steps=5, turns=4, call=_command), few_calls=few_calls))
    with ScriptedOpenAI(model, record=False) as server, bench.sandbox_stand_in() as sandbox:
        settings = {"API_KEY": "sk-bench", "API_BASE": server.url, "MODEL_NAME": "scripted"}
        with bench.service(settings | sandbox_settings(sandbox)) as service:
            _chat(service)
    return model.figures


def _command(number: int) -> Call:
    return Call("shell_exec", {"id": "main", "exec_dir": "~", "command": f"ls -la ~/reports/{number}"})


def _chat(service: RunningProcess) -> None:
    with service.connect() as connection:
        path = f"/api/v1/sessions/{connection.new_session()}/chat"
        stream = connection.request("POST", path, {"message": MESSAGE})
    if b"\nevent: done\n" not in stream:
        raise CannotRun(f"the task did not end: {stream[-2000:]!r}")
