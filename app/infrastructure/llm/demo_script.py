"""The words and deeds of the demo model, apart from how it finds its place."""

import re
from collections.abc import Callable
from dataclasses import dataclass

LABEL = "[Demo model, not a real AI]"
TRIES = 3
"""Calls within a step before it is reported as failed."""

MAX_WORDS = 2_000
"""Characters of the user's words that go into the program."""

MACHINE = "The machine:"
PRINTED = "The program printed:"
PROGRAM_FILE = "~/answer.py"

Call = tuple[str, dict[str, object]]

_GREETING = re.compile(
    r"((hi|hello|hey|hallo|hola|bonjour|ciao|good (morning|afternoon|evening|day)|thanks|thank you|bye|goodbye"
    r"|how are you( doing)?|who are you|what are you|what is this|what can you do|what do you do|how do you work"
    r"|can you help( me)?|are you (a |an )?(real|ai|human|bot)|help|test|ping|there|anker|agent|demo|please|and|so"
    r"|你好|您好)\s*)+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the demo: its first call, from the user's words, and its report, from that call's output."""

    id: str
    description: str
    call: Callable[[str], Call]
    report: Callable[[str], str]
    shell: str = "demo"


def greeting(words: str) -> str:
    """The answer to a greeting or a question about the demo model itself; empty when the words are a task."""
    plain = " ".join(re.sub(r"[^\w\s]", " ", words).split())
    if plain and not _GREETING.fullmatch(plain + " "):
        return ""
    return (
        "Hello! I am the demo model: a small script that stands in until a real model is configured (API_KEY). I "
        "understand nothing, but everything around me is real. Give me any task, and I will plan it, look at the "
        "machine with a shell, write a small program about your words, read it back, run it and report."
    )


def plan_for(words: str) -> dict[str, object]:
    """The arguments of `create_plan` for a task."""
    return {
        "title": "Demo: " + (" ".join(words.split())[:60] or "a task"),
        "message": (
            f"{LABEL} I only play a script, but on a real computer: I will look at the machine, write a small program "
            "about your words, read it back and run it. Set API_KEY to get a real model."
        ),
        "goal": f"A program in {PROGRAM_FILE} about the user's words, and its output",
        "steps": [{"id": step.id, "description": step.description} for step in STEPS],
    }


def answer_text(results: str) -> str:
    """The final answer, from the service's list of the steps' results."""
    machine = _after(MACHINE, results).partition("\n")[0].strip()
    # The program prints no empty line: the first one is the end of its output.
    printed = _after(PRINTED, results).strip("\n").partition("\n\n")[0].strip()
    failed = [line.strip()[:300] for line in results.splitlines() if "[failed]" in line]
    parts = [LABEL]
    if machine:
        parts.append(f"I looked at the machine: {machine}.")
    if printed:
        parts.append(f"I wrote {PROGRAM_FILE}, read it back and ran it. It printed:\n\n```\n{printed}\n```")
    if failed:
        parts.append("These steps failed:\n" + "\n".join(f"- {line}" for line in failed))
    if not printed:
        parts.append("So there is no output of the program to show.")
    return "\n\n".join([*parts, "A real model would have understood the task: set API_KEY and start again."])


def program(words: str) -> str:
    """A Python program that computes something from `words`, which are in it as an inert ASCII literal."""
    text = words[:MAX_WORDS].encode("utf-8", "replace").decode()
    return _PROGRAM.replace("__WORDS__", ascii(text))


_PROGRAM = '''\
"""What can be counted in the words of a user. Written by the demo model of Anker."""

from collections import Counter

TEXT = __WORDS__

words = TEXT.split()
letters = Counter(char for char in TEXT.lower() if char.isalpha())
print("Your words:", " ".join(words)[:200])
print(f"{len(words)} words, {len(set(words))} of them different, {len(TEXT)} characters")
print("Longest word:", max(words, key=len, default="none")[:80])
print("Most frequent letters:", ", ".join(f"{letter} ({count})" for letter, count in letters.most_common(5)) or "none")
print("Backwards:", " ".join(reversed(words))[:200])
'''


def _after(marker: str, text: str) -> str:
    return text.rpartition(marker)[2] if marker in text else ""


def _look(_words: str) -> Call:
    command = "uname -sm; python3 --version; df -h . | tail -n 1"
    return "shell_exec", {"id": "demo", "exec_dir": "~", "command": command}


def _write(words: str) -> Call:
    return "file_write", {"file": PROGRAM_FILE, "content": program(words)}


def _read(_words: str) -> Call:
    return "file_read", {"file": PROGRAM_FILE}


def _run(_words: str) -> Call:
    return "shell_exec", {"id": "demo", "exec_dir": "~", "command": "python3 answer.py"}


def _looked(output: str) -> str:
    return f"{MACHINE} " + "; ".join(" ".join(line.split()) for line in output.splitlines() if line.strip())[:500]


def _wrote(output: str) -> str:
    return f"{PROGRAM_FILE}: {output[:200]}"


def _read_back(output: str) -> str:
    lines = output.count("\n") + 1
    return f"{PROGRAM_FILE} has {lines} lines" + (" and counts the words." if "Counter" in output else ".")


def _ran(output: str) -> str:
    return f"{PRINTED}\n" + "\n".join(line for line in output[:3_000].splitlines() if line.strip())


STEPS = (
    Step("look", "Look at the machine with a shell command", _look, _looked),
    Step("write", "Write a small program about the user's words", _write, _wrote),
    Step("read", "Read the program back", _read, _read_back),
    Step("run", "Run the program", _run, _ran),
)
