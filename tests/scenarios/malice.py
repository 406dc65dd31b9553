"""Models that work against the service: each of them would go on for ever."""

import itertools
from collections.abc import Callable
from typing import Any

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply
from tests.support.task_models import SUMMARY, final_answer, is_compaction

Executing = Callable[[int], Reply]
"""The answer to the executing request of a number, from 1."""


def shell(command: str) -> Call:
    return Call("shell_exec", {"id": "main", "exec_dir": "~", "command": command})


def complete(**more: Any) -> Call:
    return Call("complete_step", {"success": True, "result": "ok", **more})


def malicious(executing: Executing, *, steps: int = 2, summary: Reply | None = None) -> Callable[[Asked], Answer]:
    """Return a script that plans `steps` steps, and then answers every executing request with `executing`."""
    numbers = itertools.count(1)
    listed = [{"id": str(number), "description": f"Part {number}"} for number in range(1, steps + 1)]
    plan = {"title": "T", "message": "I will.", "goal": "G", "steps": listed}

    def answer(asked: Asked) -> Answer:
        if is_compaction(asked):
            return summary or Reply(text=SUMMARY)
        if asked.kind == "planning":
            return Reply(calls=[Call("create_plan", plan)])
        return executing(next(numbers)) if asked.kind == "executing" else Reply(text=final_answer(asked))

    return answer


def add_step(number: int) -> Reply:
    """Complete the step, and add two new ones."""
    steps = [{"id": f"{number}.{part}", "description": f"One more, {number}.{part}"} for part in (1, 2)]
    return Reply(calls=[complete(plan_changes={"steps": steps})])


ENDLESS: dict[str, Executing] = {
    "the same call": lambda number: Reply(calls=[shell("true")]),
    "two calls in turn": lambda number: Reply(calls=[shell(f"echo {number % 2}")]),
    "the same pair of calls": lambda number: Reply(
        calls=[shell("true"), Call("file_find_by_name", {"path": "~", "glob": "*"})]
    ),
    "the same failing call": lambda number: Reply(calls=[Call("file_read", {"file": "~/missing"})]),
    "a call and prose in turn": lambda number: Reply(text="I go on.") if number % 2 else Reply(calls=[shell("true")]),
    "ever new calls": lambda number: Reply(calls=[shell(f"report {number}")]),
    "ever new steps": add_step,
    "only messages": lambda number: Reply(calls=[Call("message_notify_user", {"text": "Still working."})]),
}
"""Ways to go on for ever, by name."""

HUGE: dict[str, Executing] = {
    "giant results": lambda number: Reply(calls=[shell(f"flood {number}")]),
    "giant arguments": lambda number: Reply(
        calls=[Call("file_write", {"file": f"~/{number}.txt", "content": f"line {number}\n" * 20_000})]
    ),
    "giant invalid arguments": lambda number: Reply(calls=[Call("file_write", '{"file": "' + "x" * 200_000)]),
    "giant text": lambda number: Reply(text=f"I think {number}. " * 15_000, calls=[shell(f"echo {number}")]),
    "300 calls": lambda number: Reply(calls=[shell(f"echo {number}.{n}") for n in range(300)]),
    "giant step results": lambda number: Reply(calls=[complete(result=f"result {number} " * 15_000)]),
    "a giant unknown function": lambda number: Reply(calls=[Call("f" * 100_000, {"number": number})]),
}
"""Ways to fill the window at once, by name. The model completes its steps after a few of them."""
