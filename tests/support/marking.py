"""A model whose tool calls leave marks: each appends a word to a file that no other call ever appends."""

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

STEPS, CALLS = 2, 2
"""Of each task: its steps, and the commands of a step."""

_TASK = re.compile(r"\[task:(\w+)\]")
_numbers = itertools.count(1)


def task(name: str, words: str = "Go on") -> str:
    """A user's words that say which task they belong to."""
    return f"{words} [task:{name}]"


class MarkingModel:
    """Decides from the conversation alone, as a model does: nothing is lost when who asked it dies.

    `slow`: the chance that a command takes a while before it leaves its mark. `answers` has, by the name of a task,
    what is answered instead when it carries out a step.
    """

    def __init__(self, rng: random.Random, marks: Path, *, slow: float = 0) -> None:
        self.answers: dict[str, Callable[[Asked], Answer]] = {}
        self.short: set[str] = set()
        """Tasks that are answered at once, without a plan."""
        self._rng = rng
        self._marks = marks
        self._slow = slow
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        name = task_of(asked)
        with self._lock:
            delay, slow = self._rng.random() * 0.03, self._rng.random() < self._slow
        if asked.kind == "planning":
            steps = [{"id": str(n), "description": f"Step {n}"} for n in range(1, STEPS + 1)]
            plan = {"title": "T", "message": "I will.", "goal": "G", "steps": [] if name in self.short else steps}
            return Reply(calls=[Call("create_plan", plan)], delay=delay)
        if asked.kind == "final":
            return Reply(text="All is done, at last. " * 5, size=20, delay=delay / 5)
        if name in self.answers:
            return self.answers[name](asked)
        if turns_since_words(asked) < CALLS:
            command = f"echo {name}.{uuid4().hex} >> {self._marks}"
            return shell(f"sleep 0.3; {command}" if slow else command, delay=delay)
        return Reply(calls=[Call("complete_step", {"success": True, "result": "ok"})], delay=delay)


def task_of(asked: Asked) -> str:
    """The newest task that a conversation names; empty when it names none."""
    for message in reversed(asked.messages):
        if message["role"] == "user" and (found := _TASK.findall(message["content"])):
            return found[-1]
    return ""


def turns_since_words(asked: Asked) -> int:
    """How many turns the model has had since the newest message of role user."""
    roles = [message["role"] for message in asked.messages][::-1]
    return roles[: roles.index("user")].count("assistant")


def shell(command: str, *, delay: float = 0) -> Reply:
    """A turn that runs a command."""
    return Reply(calls=[Call("shell_exec", {"id": "main", "exec_dir": "~", "command": command})], delay=delay)


def endless(lengths: list[str]) -> Callable[[Asked], Answer]:
    """Runs a command that ends with its sandbox only; what it sleeps is put into `lengths`, and no other sleeps that
    long, so that it can be told from all others."""

    def answer(asked: Asked) -> Answer:
        if "still run" in str(asked.messages[-1]["content"]):
            return Reply(calls=[Call("shell_wait", {"id": "main", "seconds": 300})])
        lengths.append(f"{70_000 + next(_numbers)}")
        return shell(f"sleep {lengths[-1]}")

    return answer


def words_in(marks: Path) -> Counter[str]:
    """How often each mark was left."""
    return Counter(marks.read_text().split() if marks.exists() else [])


def check_marks(histories: Sequence[Sequence[SseFrame]], marks: Counter[str]) -> None:
    """No command ran twice or unannounced, and each that is said to have ended well left its mark."""
    assert not (twice := [word for word, count in marks.items() if count > 1]), f"commands ran twice: {twice}"
    announced: set[str] = set()
    for history in histories:
        for frame in history:
            if frame.event != "tool":
                continue
            tool: dict[str, Any] = frame.data
            if tool["function"] != "shell_exec" or ">>" not in tool["args"]["command"]:
                continue
            word = tool["args"]["command"].split("echo ")[1].split()[0]
            announced.add(word)
            result = tool.get("result") or {}
            if result.get("success") and result["data"]["returncode"] == 0:
                assert marks[word] == 1, f"{word} was said to be written, and is not there"
    tasks = {word.split(".")[0] for word in announced}
    unknown = {word for word in marks if word.split(".")[0] in tasks} - announced
    assert not unknown, f"commands ran that no event announced: {unknown}"
