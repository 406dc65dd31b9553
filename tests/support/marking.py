"""A scripted model whose commands leave marks: each appends a unique word to a file, so that a repetition shows."""

import itertools
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.fakes.scripted_openai import Answer, Asked, Call, Reply
from tests.support.sse import SseFrame

STEPS = 2
"""Number of steps of each plan."""

CALLS = 2
"""Number of commands of each step."""

_TASK = re.compile(r"\[task:(\w+)\]")
_numbers = itertools.count(1)


def task(name: str, text: str = "Go on") -> str:
    """Return a user message that names its task."""
    return f"{text} [task:{name}]"


class MarkingModel:
    """A script for `ScriptedOpenAI`. It decides from the conversation alone, as a model does.

    Args:
        rng: The source of delays.
        marks: The file that the commands append to.
        slow: The probability that a command waits before it leaves its mark.
    """

    def __init__(self, rng: random.Random, marks: Path, *, slow: float = 0) -> None:
        self.step_scripts: dict[str, Callable[[Asked], Answer]] = {}
        """What responds, by the name of a task, to the requests of a step instead of this model."""
        self.without_steps: set[str] = set()
        """Names of tasks whose plan has no steps."""
        self._rng = rng
        self._marks = marks
        self._slow = slow
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        name = task_of(asked)
        with self._lock:
            delay, slow = self._rng.random() * 0.03, self._rng.random() < self._slow
        if asked.kind == "planning":
            ids = () if name in self.without_steps else range(1, STEPS + 1)
            steps = [{"id": str(number), "description": f"Step {number}"} for number in ids]
            plan = {"title": "T", "message": "I will.", "goal": "G", "steps": steps}
            return Reply(calls=[Call("create_plan", plan)], delay=delay)
        if asked.kind == "final":
            return Reply(text="All is done, at last. " * 5, size=20, delay=delay / 5)
        if name in self.step_scripts:
            return self.step_scripts[name](asked)
        if turns_of_step(asked) < CALLS:
            command = f"echo {name}.{uuid4().hex} >> {self._marks}"
            return shell(f"sleep 0.3; {command}" if slow else command, delay=delay)
        return Reply(calls=[Call("complete_step", {"success": True, "result": "ok"})], delay=delay)


def task_of(asked: Asked) -> str:
    """Return the newest task that a conversation names, or an empty string."""
    for message in reversed(asked.messages):
        if message["role"] == "user" and (found := _TASK.findall(message["content"])):
            return found[-1]
    return ""


def turns_of_step(asked: Asked) -> int:
    """Return the number of turns of the model since it completed a step, or since the newest message of role user."""
    turns = 0
    for message in reversed(asked.messages):
        made = [call["function"]["name"] for call in message.get("tool_calls") or ()]
        if message["role"] == "user" or "complete_step" in made:
            break
        turns += message["role"] == "assistant"
    return turns


def shell(command: str, *, delay: float = 0) -> Reply:
    """Return a turn that runs a command."""
    return Reply(calls=[Call("shell_exec", {"id": "main", "exec_dir": "~", "command": command})], delay=delay)


def run_endless_command(started: list[str]) -> Callable[[Asked], Answer]:
    """Return a script that runs a `sleep` which only ends with its sandbox or when it is killed.

    The unique argument of each `sleep` is appended to `started`, to recognise its process.
    """

    def respond(asked: Asked) -> Answer:
        if "still run" in str(asked.messages[-1]["content"]):
            return Reply(calls=[Call("shell_wait", {"id": "main", "seconds": 300})])
        started.append(f"{70_000 + next(_numbers)}")
        return shell(f"sleep {started[-1]}")

    return respond


def read_marks(marks: Path) -> Counter[str]:
    """Return how often each mark was left."""
    return Counter(marks.read_text().split() if marks.exists() else [])


def check_marks(histories: Sequence[Sequence[SseFrame]], marks: Counter[str]) -> None:
    """Assert that no command ran twice, that none ran without an event, and that each successful one left its mark."""
    assert not (twice := [mark for mark, count in marks.items() if count > 1]), f"commands ran twice: {twice}"
    announced: set[str] = set()
    for history in histories:
        for frame in history:
            if frame.event != "tool":
                continue
            tool: dict[str, Any] = frame.data
            if tool["function"] != "shell_exec" or ">>" not in tool["args"]["command"]:
                continue
            mark = tool["args"]["command"].split("echo ")[1].split()[0]
            announced.add(mark)
            result = tool.get("result") or {}
            if result.get("success") and result["data"]["returncode"] == 0:
                assert marks[mark] == 1, f"the command of {mark} succeeded, but the mark is missing"
    tasks = {mark.split(".")[0] for mark in announced}
    unknown = {mark for mark in marks if mark.split(".")[0] in tasks} - announced
    assert not unknown, f"commands ran that no event announced: {unknown}"
