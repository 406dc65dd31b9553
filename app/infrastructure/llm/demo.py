"""The demo model: no network, no key, no intelligence; a script that has the whole service at work.

It plans, looks at the machine, writes a small program about the user's words, reads it back, runs it and reports what
it really printed. It keeps nothing between two calls: where it stands it reads from the transcript, so that another
process can take over in the middle, and a tool that failed or was interrupted is tried again or reported.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from app.domain.external.llm import ModelReply, ModelRequest, ReplyListener
from app.domain.models.message import AssistantMessage, Message, ToolCall, ToolMessage, Usage, UserMessage
from app.infrastructure.llm.demo_script import LABEL, STEPS, TRIES, Step, answer_text, greeting, plan_for

PIECE = 24
"""Characters that are given to the listener at a time."""

_OPEN, _CLOSE = "<user_message>\n", "\n</user_message>"
_FAILED = re.compile(r"\s*(failed|error|interrupted|not run|there is no function)\b", re.IGNORECASE)
_OUTCOME = re.compile(r"^\[(exit code (?P<code>-?\d+)|still running|nothing is running)\b.*", re.MULTILINE)
"""How the shell's functions end: a line of its own, after the output."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A call of the model's own, and what came of it; None while it has no answer."""

    call: ToolCall
    result: str | None

    @property
    def failed(self) -> bool:
        """Whether it came to nothing."""
        outcome = self._outcome
        if outcome is not None:
            return outcome["code"] != "0" and not self.is_running
        return self.result is None or _FAILED.match(self.result) is not None

    @property
    def is_running(self) -> bool:
        """Whether a command goes on."""
        return self._outcome is not None and self._outcome[1] == "still running"

    @property
    def output(self) -> str:
        """The result without what the shell says about its end."""
        outcome = self._outcome
        return _sendable((self.result or "")[: outcome.start() if outcome else None].strip())

    @property
    def _outcome(self) -> re.Match[str] | None:
        if self.result is None or not self.call.name.startswith("shell_"):
            return None
        return next(reversed(list(_OUTCOME.finditer(self.result))), None)


class DemoModel:
    """The `LLM` port, played from a script; see the port for the methods."""

    def __init__(self, *, pace_seconds: float = 0.02) -> None:
        """`pace_seconds` is the pause before each piece of text, so that streaming can be seen; 0 for none."""
        self._pace = pace_seconds

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """The next turn of the script."""
        messages = request.transcript.since(0)
        offered = {spec.name for spec in request.tools}
        if "create_plan" in offered:
            arguments = orjson.dumps(_plan(messages)).decode()
            call = ToolCall(id=f"demo_{len(messages)}", name="create_plan", arguments=arguments)
            await self._speak(arguments, listener, call=call.name)
            return _reply(call)
        if "complete_step" in offered:
            await asyncio.sleep(0)
            name, values = _next_call(messages)
            return _reply(ToolCall(id=f"demo_{len(messages)}", name=name, arguments=orjson.dumps(values).decode()))
        text = answer_text(_last_brief(messages))
        await self._speak(text, listener)
        return ModelReply(content=text, usage=Usage(calls=1))

    async def close(self) -> None:
        """Nothing to give back."""

    async def _speak(self, text: str, listener: ReplyListener | None, *, call: str = "") -> None:
        if listener is None:
            return
        for start in range(0, len(text), PIECE):
            await asyncio.sleep(self._pace)
            piece = text[start : start + PIECE]
            if call:
                listener.arguments(call, piece)
            else:
                listener.text(piece)


def _sendable(text: str) -> str:
    """`text` without halves of surrogate pairs, which JSON cannot carry."""
    return text.encode("utf-8", "replace").decode()


def _reply(call: ToolCall) -> ModelReply:
    return ModelReply(tool_calls=(call,), finish="tool_calls", usage=Usage(calls=1))


def _plan(messages: Sequence[Message]) -> dict[str, object]:
    words = _newest_words(messages)
    text = greeting(words)
    if text:
        return {"title": "The demo model", "message": f"{LABEL} {text}", "goal": "", "steps": []}
    return plan_for(words)


def _words_in(message: Message) -> str | None:
    """The user's own words inside a message that the service wrote around them."""
    if not isinstance(message, UserMessage):
        return None
    start, end = message.content.find(_OPEN), message.content.rfind(_CLOSE)
    if start < 0 or end < start:
        return None
    return _sendable(message.content[start + len(_OPEN) : end].strip())


def _newest_words(messages: Sequence[Message]) -> str:
    """What the user said since the model last spoke; the latest words when that is nothing, as after a restart."""
    newest: list[str] = []
    for message in reversed(messages):
        if isinstance(message, AssistantMessage) and newest:
            break
        words = _words_in(message)
        if words is not None:
            newest.append(words)
    return "\n".join(reversed(newest)) if newest else _last_brief(messages)


def _last_brief(messages: Sequence[Message]) -> str:
    """The newest message that is not the model's own and no tool's."""
    return next((message.content for message in reversed(messages) if isinstance(message, UserMessage)), "")


def _next_call(messages: Sequence[Message]) -> tuple[str, dict[str, object]]:
    """The function to call now and its arguments, from all that the plan at work has seen."""
    opening = max((n for n, message in enumerate(messages) if _words_in(message) is not None), default=0)
    turns = _turns(messages[opening:])
    ended = [n for n, turn in enumerate(turns) if turn.call.name == "complete_step" and not turn.failed]
    words = _words_in(messages[opening]) or _last_brief(messages)
    if len(ended) >= len(STEPS):
        return "complete_step", {"success": True, "result": "There was nothing more to do."}
    step = STEPS[len(ended)]
    turns = [turn for turn in turns[ended[-1] + 1 if ended else 0 :] if turn.call.name != "complete_step"]
    return _within_step(step, turns, words)


def _turns(messages: Sequence[Message]) -> list[_Turn]:
    results = {message.tool_call_id: message.content for message in messages if isinstance(message, ToolMessage)}
    calls = (call for message in messages if isinstance(message, AssistantMessage) for call in message.tool_calls)
    return [_Turn(call, results.get(call.id)) for call in calls]


def _within_step(step: Step, turns: Sequence[_Turn], words: str) -> tuple[str, dict[str, object]]:
    if not turns:
        return step.call(words)
    last = turns[-1]
    if last.is_running and len(turns) < TRIES:
        return "shell_wait", {"id": step.shell, "seconds": 10}
    if last.failed and len(turns) < TRIES:
        return step.call(words)
    if last.failed or last.is_running:
        told = _sendable(last.result or "no answer")[:500]
        return "complete_step", {"success": False, "result": f"Given up after {len(turns)} attempts: {told}"}
    return "complete_step", {"success": True, "result": step.report(last.output)}
