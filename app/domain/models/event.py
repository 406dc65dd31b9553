"""Events: everything that a client sees of a session, in the order in which it happened.

An event carries neither number nor time; the log adds both when it stores the event (see `EventRecord`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from app.domain.models.plan import Step, StepStatus
from app.domain.models.tool import OpenCall, ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent:
    """Words of the user or of the agent."""

    role: Literal["user", "assistant"]
    content: str
    type: Literal["message"] = "message"


@dataclass(frozen=True, slots=True, kw_only=True)
class TitleEvent:
    """What the session is now called."""

    title: str
    type: Literal["title"] = "title"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEvent:
    """The whole plan as it now stands."""

    steps: tuple[Step, ...]
    type: Literal["plan"] = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """A step began or ended."""

    id: str
    description: str
    status: StepStatus
    type: Literal["step"] = "step"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallingEvent:
    """A tool call is about to start."""

    call: OpenCall
    type: Literal["tool"] = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalledEvent:
    """The tool call ended, well or not."""

    call: OpenCall
    result: ToolResult
    type: Literal["tool"] = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEvent:
    """The agent asked the user; the run rests until the next message."""

    type: Literal["wait"] = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent:
    """The run failed."""

    error: str
    type: Literal["error"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneEvent:
    """The run ended."""

    type: Literal["done"] = "done"


Event = (
    MessageEvent
    | TitleEvent
    | PlanEvent
    | StepEvent
    | ToolCallingEvent
    | ToolCalledEvent
    | WaitEvent
    | ErrorEvent
    | DoneEvent
)

EventType = Literal["message", "title", "plan", "step", "tool", "wait", "error", "done"]

TERMINAL: frozenset[str] = frozenset({"wait", "error", "done"})
"""The types of the events that end a run, and with it the chat streams that follow the run."""


class EventRecord(NamedTuple):
    """A stored event: its number in the session (from 1, without gaps), its type, and its JSON, encoded once.

    `data` is the object that clients get, `event_id` and `timestamp` included. A tuple, because a long history makes
    thousands of them at once.
    """

    number: int
    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a message as the model writes it; never stored."""

    message_id: str
    delta: str
