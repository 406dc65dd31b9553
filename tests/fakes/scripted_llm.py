"""The LLM port in memory: a test writes down what the model says, and looks at what it was asked."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from app.domain.external.llm import ModelReply, ModelRequest, ReplyListener
from app.domain.models.message import Message, ToolCall, Transcript, Usage

Kind = Literal["planning", "executing", "final"]


@dataclass(frozen=True)
class Question:
    """One request, with the messages as they were at that moment."""

    messages: tuple[Message, ...]
    tools: frozenset[str]
    transcript: Transcript

    @property
    def kind(self) -> Kind:
        """What the service wants, told by the functions on offer."""
        if "create_plan" in self.tools:
            return "planning"
        return "executing" if "complete_step" in self.tools else "final"


Turn = ModelReply | BaseException
Entry = Turn | Callable[[Question], Turn | Awaitable[Turn]]
"""A reply, an exception to raise, or a function (plain or async) that gives one of them."""


def calling(*calls: tuple[str, dict[str, Any] | str], text: str = "", ids: Sequence[str] | None = None) -> ModelReply:
    """A reply that calls functions; arguments as an object, or as text when they are to be broken."""
    made = tuple(
        ToolCall(
            id=ids[n] if ids is not None else f"call_{n}",
            name=name,
            arguments=values if isinstance(values, str) else orjson.dumps(values).decode(),
        )
        for n, (name, values) in enumerate(calls)
    )
    return ModelReply(content=text, tool_calls=made, finish="tool_calls", usage=Usage(calls=1))


def saying(text: str) -> ModelReply:
    """A reply in plain text."""
    return ModelReply(content=text, usage=Usage(calls=1))


@dataclass
class ScriptedLLM:
    """Plays `script`: a list, used up in order, or one function for every request.

    `asked` holds the questions. While `gate` is set to an event, a call waits for it, as one under way does; `started`
    is set whenever a call has begun. `cancelled` counts the calls that were cancelled.
    """

    script: Sequence[Entry] | Callable[[Question], Turn | Awaitable[Turn]] = ()
    piece: int = 8
    """Characters that the listener hears at a time."""
    gate: asyncio.Event | None = None
    asked: list[Question] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0
    closed: bool = False

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """The next turn of the script; AssertionError when it is over."""
        question = Question(
            tuple(request.transcript.since(0)), frozenset(spec.name for spec in request.tools), request.transcript
        )
        self.asked.append(question)
        self.started.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            turn = await self._turn(question)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(turn, BaseException):
            raise turn
        if listener is not None:
            for start in range(0, len(turn.content), self.piece):
                listener.text(turn.content[start : start + self.piece])
            for call in turn.tool_calls:
                for start in range(0, len(call.arguments), self.piece):
                    listener.arguments(call.name, call.arguments[start : start + self.piece])
        return turn

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    async def _turn(self, question: Question) -> Turn:
        if callable(self.script):
            entry: Entry = self.script
        else:
            number = len(self.asked) - 1
            assert number < len(self.script), f"the script is over; asked: {question.messages[-1:]}"
            entry = self.script[number]
        if isinstance(entry, ModelReply | BaseException):
            return entry
        turn = entry(question)
        return await turn if inspect.isawaitable(turn) else turn
