"""Scripted models that carry out a task of any length, one way or another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply

WORD = "KINGFISHER-7Q"
"""The word in the first message of a task that the final answer must repeat."""

FORGOTTEN = "I do not know the code word any more."
"""The end of the final answer of a model whose prompt no longer holds `WORD`."""

MESSAGE = f"Go through all the reports, one after the other. The code word is {WORD}: end your answer with it."
"""The first message of a task."""

SUMMARY = "The reports so far were read and noted in ~/notes. Nothing unusual was found. No problem is open."
"""What a model writes that is asked for a summary. It does not repeat `WORD`: the user's own words must be kept."""


def work_call(number: int) -> Call:
    """Return call `number` of a task: mostly commands, and now and then a note that is written and read again."""
    note = f"~/notes/{number - number % 5}.md"
    if number % 5 == 3:
        return Call("file_write", {"file": note, "content": f"Note on report {number}: " + "all is in order. " * 40})
    if number % 5 == 4:
        return Call("file_read", {"file": note})
    return Call("shell_exec", {"id": "main", "exec_dir": "~", "command": f"report {number}"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The size of a task: `steps` steps of `turns` turns of the model, each with `parallel` calls."""

    steps: int
    turns: int
    parallel: int = 1
    call: Callable[[int], Call] = work_call


class TaskModel:
    """A script that carries out a task, one turn after the other.

    Args:
        task: The size of the task.
        few_calls: Whether the model uses every way to save a call that the request offers.
        summary: What it writes when it is asked for a summary.
    """

    def __init__(self, task: Task, *, few_calls: bool = False, summary: str = SUMMARY) -> None:
        self.summaries = 0
        """Number of summaries that the model was asked for."""
        self.completed = 0
        """Number of steps that the model has completed."""
        self._task = task
        self._few_calls = few_calls
        self._summary = summary
        self._turns = 0
        self._calls = 0

    def __call__(self, asked: Asked) -> Answer:
        if is_compaction(asked):
            self.summaries += 1
            return Reply(text=self._summary)
        match asked.kind:
            case "planning":
                return Reply(calls=[self._plan(), *self._first_calls(offered="shell_exec" in asked.tools)])
            case "executing":
                return Reply(calls=self._work(offers_answer=_offers_answer(asked), asked=asked))
            case "final":
                return Reply(text=final_answer(asked))

    def _plan(self) -> Call:
        steps = [{"id": str(n), "description": f"Read part {n}"} for n in range(1, self._task.steps + 1)]
        plan = {"title": "Reports", "message": "I will read them.", "goal": "All reports are read", "steps": steps}
        return Call("create_plan", plan)

    def _first_calls(self, *, offered: bool) -> list[Call]:
        return self._next_turn() if self._few_calls and offered else []

    def _work(self, *, offers_answer: bool, asked: Asked) -> list[Call]:
        if self._turns < self._task.turns:
            return self._next_turn()
        self._turns = 0
        self.completed += 1
        arguments: dict[str, Any] = {"success": True, "result": f"Part {self.completed} is read."}
        if self.completed < self._task.steps:
            return [Call("complete_step", arguments), *(self._next_turn() if self._few_calls else [])]
        if self._few_calls and offers_answer:
            arguments["answer"] = final_answer(asked)
        return [Call("complete_step", arguments)]

    def _next_turn(self) -> list[Call]:
        self._turns += 1
        self._calls += self._task.parallel
        return [self._task.call(self._calls - left) for left in range(self._task.parallel, 0, -1)]


def final_answer(asked: Asked) -> str:
    """Return the final answer: with `WORD` if the prompt holds it."""
    return f"All reports are in order. {WORD if WORD.encode() in asked.raw else FORGOTTEN}"


def is_compaction(asked: Asked) -> bool:
    """Return whether the request asks for a summary."""
    return asked.kind == "summary"


def _offers_answer(asked: Asked) -> bool:
    tools = {tool["function"]["name"]: tool["function"] for tool in asked.body.get("tools", ())}
    return "answer" in tools["complete_step"]["parameters"]["properties"]
