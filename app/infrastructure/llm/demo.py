"""The demo model: a script without network, key or intelligence that exercises the whole service.

It plans, inspects the machine, writes a small program about the user's message, reads it back, runs it and reports the
real output. It keeps no state between calls: it derives its position from the transcript, so another process can
continue in the middle, and a tool call that failed or was interrupted is repeated or reported.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from app.domain.external.llm import ModelObserver, ModelReply, ModelRequest, ReplyListener
from app.domain.models.message import AssistantMessage, Message, ToolCall, ToolMessage, Usage, UserMessage
from app.domain.models.model_profile import ModelProfile

LABEL = "[Demo model, not a real AI]"

MAX_ATTEMPTS = 3
"""Maximum number of calls within a step before the step is reported as failed."""

MAX_MESSAGE = 2_000
"""Maximum number of characters of the user's message that the program contains."""

DELTA_SIZE = 24
"""Number of characters passed to the listener at a time."""

MACHINE = "The machine:"
PRINTED = "The program printed:"
PROGRAM_FILE = "~/answer.py"

SHELL = "demo"
"""Id of the shell that the script uses."""

Call = tuple[str, dict[str, object]]
"""Name and arguments of a tool call."""

_OPEN, _CLOSE = "<user_message>\n", "\n</user_message>"
_FAILED = re.compile(r"\s*(failed|error|interrupted|not run|there is no function)\b", re.IGNORECASE)
_SHELL_OUTCOME = re.compile(r"^\[(exit code (?P<code>-?\d+)|still running|nothing is running)\b.*", re.MULTILINE)
"""The last line of a shell function's result: the outcome after the output."""

_GREETING = re.compile(
    r"((hi|hello|hey|hallo|hola|bonjour|ciao|good (morning|afternoon|evening|day)|thanks|thank you|bye|goodbye"
    r"|how are you( doing)?|who are you|what are you|what is this|what can you do|what do you do|how do you work"
    r"|can you help( me)?|are you (a |an )?(real|ai|human|bot)|help|test|ping|there|anker|agent|demo|please|and|so"
    r"|你好|您好)\s*)+",
    re.IGNORECASE,
)

_PROGRAM = '''\
"""Statistics of a user's message. Written by the demo model of Anker."""

from collections import Counter

TEXT = __MESSAGE__

words = TEXT.split()
letters = Counter(char for char in TEXT.lower() if char.isalpha())
print("Your words:", " ".join(words)[:200])
print(f"{len(words)} words, {len(set(words))} of them different, {len(TEXT)} characters")
print("Longest word:", max(words, key=len, default="none")[:80])
print("Most frequent letters:", ", ".join(f"{letter} ({count})" for letter, count in letters.most_common(5)) or "none")
print("Backwards:", " ".join(reversed(words))[:200])
'''


@dataclass(frozen=True, slots=True)
class DemoStep:
    """One step of the script: its first call, made from the user's message, and its report, made from the output."""

    id: str
    description: str
    call: Callable[[str], Call]
    report: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _FinishedCall:
    """A tool call of the model and its result; None while there is no result."""

    call: ToolCall
    result: str | None

    @property
    def failed(self) -> bool:
        """Whether the call failed or has no result."""
        outcome = self._outcome
        if outcome is not None:
            return outcome["code"] != "0" and not self.is_running
        return self.result is None or _FAILED.match(self.result) is not None

    @property
    def is_running(self) -> bool:
        """Whether the command is still running."""
        return self._outcome is not None and self._outcome[1] == "still running"

    @property
    def output(self) -> str:
        """The result without the shell's outcome line."""
        outcome = self._outcome
        return _without_surrogates((self.result or "")[: outcome.start() if outcome else None].strip())

    @property
    def _outcome(self) -> re.Match[str] | None:
        if self.result is None or not self.call.name.startswith("shell_"):
            return None
        return next(reversed(list(_SHELL_OUTCOME.finditer(self.result))), None)


DEMO_PROFILE = ModelProfile(model="demo", identity="demo")
"""The profile of the demo model."""


class DemoModel:
    """The `LLM` port, played from a script."""

    def __init__(self, *, pace_seconds: float = 0.02, observer: ModelObserver | None = None) -> None:
        """Create the model.

        Args:
            pace_seconds: Pause before each text delta, so that streaming is visible; 0 for none.
            observer: Counts the calls, for metrics.
        """
        self._pace = pace_seconds
        self._observer = observer

    @property
    def profile(self) -> ModelProfile:
        """Implement `LLM.profile`."""
        return DEMO_PROFILE

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """Return the next reply of the script."""
        reply = await self._play(request, listener)
        if self._observer is not None:
            self._observer.replied(reply.usage)
        return reply

    async def close(self) -> None:
        """Do nothing: the demo model holds no resources."""

    async def _play(self, request: ModelRequest, listener: ReplyListener | None) -> ModelReply:
        messages = request.transcript.since(0)
        offered = {spec.name for spec in request.tools}
        if "create_plan" in offered:
            arguments = orjson.dumps(_plan(messages)).decode()
            call = ToolCall(id=f"demo_{len(messages)}", name="create_plan", arguments=arguments)
            await self._stream(arguments, listener, call=call.name)
            return _reply(call)
        if "complete_step" in offered:
            await asyncio.sleep(0)
            name, values = _next_call(messages)
            return _reply(ToolCall(id=f"demo_{len(messages)}", name=name, arguments=orjson.dumps(values).decode()))
        text = answer_text(_newest_user_message(messages))
        await self._stream(text, listener)
        return ModelReply(content=text, usage=Usage(calls=1))

    async def _stream(self, text: str, listener: ReplyListener | None, *, call: str = "") -> None:
        if listener is None:
            return
        for start in range(0, len(text), DELTA_SIZE):
            await asyncio.sleep(self._pace)
            delta = text[start : start + DELTA_SIZE]
            if call:
                listener.arguments(call, delta)
            else:
                listener.text(delta)


def greeting(message: str) -> str:
    """Return the reply to a greeting or a question about the demo model; empty if `message` is a task."""
    plain = " ".join(re.sub(r"[^\w\s]", " ", message).split())
    if plain and not _GREETING.fullmatch(plain + " "):
        return ""
    return (
        "Hello! I am the demo model: a small script that stands in until a real model is configured (API_KEY). I "
        "understand nothing, but everything around me is real. Give me any task, and I will plan it, look at the "
        "machine with a shell, write a small program about your words, read it back, run it and report."
    )


def plan_for(message: str) -> dict[str, object]:
    """Return the arguments of `create_plan` for a task."""
    return {
        "title": "Demo: " + (" ".join(message.split())[:60] or "a task"),
        "message": (
            f"{LABEL} I only play a script, but on a real computer: I will look at the machine, write a small program "
            "about your words, read it back and run it. Set API_KEY to get a real model."
        ),
        "goal": f"A program in {PROGRAM_FILE} about the user's words, and its output",
        "steps": [{"id": step.id, "description": step.description} for step in STEPS],
    }


def answer_text(results: str) -> str:
    """Return the final answer, made from the service's list of step results."""
    machine = _text_after(MACHINE, results).partition("\n")[0].strip()
    # The program prints no empty line, so the first one ends its output.
    printed = _text_after(PRINTED, results).strip("\n").partition("\n\n")[0].strip()
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


def program(message: str) -> str:
    """Return a Python program that analyzes `message`, which it contains as an ASCII literal."""
    text = message[:MAX_MESSAGE].encode("utf-8", "replace").decode()
    return _PROGRAM.replace("__MESSAGE__", ascii(text))


def _text_after(marker: str, text: str) -> str:
    return text.rpartition(marker)[2] if marker in text else ""


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _reply(call: ToolCall) -> ModelReply:
    return ModelReply(tool_calls=(call,), finish="tool_calls", usage=Usage(calls=1))


def _plan(messages: Sequence[Message]) -> dict[str, object]:
    message = _unanswered_text(messages)
    text = greeting(message)
    if text:
        return {"title": "The demo model", "message": f"{LABEL} {text}", "goal": "", "steps": []}
    return plan_for(message)


def _user_text(message: Message) -> str | None:
    """Return the user's own text inside a message; None if the service wrote the whole message."""
    if not isinstance(message, UserMessage):
        return None
    start, end = message.content.find(_OPEN), message.content.rfind(_CLOSE)
    if start < 0 or end < start:
        return None
    return _without_surrogates(message.content[start + len(_OPEN) : end].strip())


def _unanswered_text(messages: Sequence[Message]) -> str:
    """Return the user's text since the model's last reply, or the newest user message if there is none."""
    newest: list[str] = []
    for message in reversed(messages):
        if isinstance(message, AssistantMessage) and newest:
            break
        text = _user_text(message)
        if text is not None:
            newest.append(text)
    return "\n".join(reversed(newest)) if newest else _newest_user_message(messages)


def _newest_user_message(messages: Sequence[Message]) -> str:
    return next((message.content for message in reversed(messages) if isinstance(message, UserMessage)), "")


def _next_call(messages: Sequence[Message]) -> Call:
    """Return the next call, derived from the calls that the current plan has made."""
    start = max((n for n, message in enumerate(messages) if _user_text(message) is not None), default=0)
    calls = _finished_calls(messages[start:])
    completed = [n for n, done in enumerate(calls) if done.call.name == "complete_step" and not done.failed]
    text = _user_text(messages[start]) or _newest_user_message(messages)
    if len(completed) >= len(STEPS):
        return "complete_step", {"success": True, "result": "There was nothing more to do."}
    step = STEPS[len(completed)]
    calls = [done for done in calls[completed[-1] + 1 if completed else 0 :] if done.call.name != "complete_step"]
    return _next_call_of_step(step, calls, text)


def _finished_calls(messages: Sequence[Message]) -> list[_FinishedCall]:
    results = {message.tool_call_id: message.content for message in messages if isinstance(message, ToolMessage)}
    calls = (call for message in messages if isinstance(message, AssistantMessage) for call in message.tool_calls)
    return [_FinishedCall(call, results.get(call.id)) for call in calls]


def _next_call_of_step(step: DemoStep, calls: Sequence[_FinishedCall], text: str) -> Call:
    if not calls:
        return step.call(text)
    last = calls[-1]
    if last.is_running and len(calls) < MAX_ATTEMPTS:
        return "shell_wait", {"id": SHELL, "seconds": 10}
    if last.failed and len(calls) < MAX_ATTEMPTS:
        return step.call(text)
    if last.failed or last.is_running:
        reason = _without_surrogates(last.result or "no answer")[:500]
        return "complete_step", {"success": False, "result": f"Given up after {len(calls)} attempts: {reason}"}
    return "complete_step", {"success": True, "result": step.report(last.output)}


def _shell_call(command: str) -> Call:
    return "shell_exec", {"id": SHELL, "exec_dir": "~", "command": command}


def _inspect_report(output: str) -> str:
    return f"{MACHINE} " + "; ".join(" ".join(line.split()) for line in output.splitlines() if line.strip())[:500]


def _read_report(output: str) -> str:
    lines = output.count("\n") + 1
    return f"{PROGRAM_FILE} has {lines} lines" + (" and counts the words." if "Counter" in output else ".")


def _run_report(output: str) -> str:
    return f"{PRINTED}\n" + "\n".join(line for line in output[:3_000].splitlines() if line.strip())


STEPS = (
    DemoStep(
        "look",
        "Look at the machine with a shell command",
        lambda _: _shell_call("uname -sm; python3 --version; df -h . | tail -n 1"),
        _inspect_report,
    ),
    DemoStep(
        "write",
        "Write a small program about the user's words",
        lambda message: ("file_write", {"file": PROGRAM_FILE, "content": program(message)}),
        lambda output: f"{PROGRAM_FILE}: {output[:200]}",
    ),
    DemoStep("read", "Read the program back", lambda _: ("file_read", {"file": PROGRAM_FILE}), _read_report),
    DemoStep("run", "Run the program", lambda _: _shell_call("python3 answer.py"), _run_report),
)
"""The steps of every demo plan, in order."""
