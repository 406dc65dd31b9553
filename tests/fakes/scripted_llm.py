"""The LLM port in memory: a test scripts the replies and inspects the requests."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from app.domain.external.llm import ModelReply, ModelRequest, ReplyListener
from app.domain.models.message import Message, SystemMessage, ToolCall, Transcript, Usage
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import ToolSpec
from app.domain.prompts import compaction

RequestKind = Literal["planning", "executing", "answering", "summarizing"]


@dataclass(frozen=True)
class RecordedRequest:
    """A request with the messages as they were when it was made."""

    messages: tuple[Message, ...]
    tools: frozenset[str]
    transcript: Transcript
    max_tokens: int | None = None
    specs: tuple[ToolSpec, ...] = ()

    @property
    def kind(self) -> RequestKind:
        """What the request asks for, according to the offered functions and the system prompt."""
        if "create_plan" in self.tools:
            return "planning"
        if "complete_step" in self.tools:
            return "executing"
        return "summarizing" if self.messages[0] == SystemMessage(content=compaction.SYSTEM) else "answering"


Outcome = ModelReply | BaseException
"""A reply, or an exception to raise."""

Respond = Callable[[RecordedRequest], Outcome | Awaitable[Outcome]]
"""A plain or async function that returns the outcome of a request."""


def calls(*wanted: tuple[str, dict[str, Any] | str], text: str = "", ids: Sequence[str] | None = None) -> ModelReply:
    """Return a reply that calls functions.

    Args:
        wanted: Name and arguments of each call. Arguments that are a string are used unchanged, even if invalid.
        text: The text of the reply.
        ids: The IDs of the calls; `call_0`, `call_1`, … by default.
    """
    tool_calls = tuple(
        ToolCall(
            id=ids[number] if ids is not None else f"call_{number}",
            name=name,
            arguments=arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode(),
        )
        for number, (name, arguments) in enumerate(wanted)
    )
    return ModelReply(content=text, tool_calls=tool_calls, finish="tool_calls", usage=Usage(calls=1))


def says(text: str) -> ModelReply:
    """Return a reply of text only."""
    return ModelReply(content=text, usage=Usage(calls=1))


def creates_plan(*descriptions: str, message: str = "M") -> ModelReply:
    """Return a reply that plans a step for each description; without any, it answers with `message` at once."""
    steps = [{"id": str(number), "description": text} for number, text in enumerate(descriptions, start=1)]
    return calls(("create_plan", {"title": "T", "message": message, "goal": "G", "steps": steps}))


def runs_command(command: str) -> ModelReply:
    """Return a reply that runs a shell command."""
    return calls(("shell_exec", {"id": "a", "exec_dir": "~", "command": command}))


def completes_step(**more: Any) -> ModelReply:
    """Return a reply that completes the current step."""
    return calls(("complete_step", {"success": True, "result": "r", **more}))


@dataclass
class ScriptedLLM:
    """Replies from `script`: a list that is used up in order, or one function for all requests."""

    script: Sequence[Outcome | Respond] | Respond = ()
    chunk_size: int = 8
    """Number of characters that the listener receives at once."""
    gate: asyncio.Event | None = None
    """If set, every call waits for this event before it replies."""
    requests: list[RecordedRequest] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by every call when it starts."""
    cancelled: int = 0
    """Number of calls that were cancelled."""
    closed: bool = False
    profile: ModelProfile = field(default_factory=lambda: ModelProfile(model="scripted", identity="scripted"))

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """Return the next reply of the script, or raise its exception."""
        recorded = RecordedRequest(
            tuple(request.transcript.since(0)),
            frozenset(spec.name for spec in request.tools),
            request.transcript,
            request.max_tokens,
            tuple(request.tools),
        )
        self.requests.append(recorded)
        self.started.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            outcome = await self._next_outcome(recorded)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        if listener is not None:
            self._feed_listener(outcome, listener)
        return outcome

    async def close(self) -> None:
        """Record that the model was closed."""
        self.closed = True

    def _feed_listener(self, reply: ModelReply, listener: ReplyListener) -> None:
        for text in _chunks(reply.content, self.chunk_size):
            listener.text(text)
        for call in reply.tool_calls:
            for text in _chunks(call.arguments, self.chunk_size):
                listener.arguments(call.name, text)

    async def _next_outcome(self, request: RecordedRequest) -> Outcome:
        if callable(self.script):
            entry: Outcome | Respond = self.script
        else:
            number = len(self.requests) - 1
            assert number < len(self.script), f"the script has ended; last message: {request.messages[-1:]}"
            entry = self.script[number]
        if isinstance(entry, ModelReply | BaseException):
            return entry
        outcome = entry(request)
        return await outcome if inspect.isawaitable(outcome) else outcome


def _chunks(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]
