"""Events: what a client sees of a session, in order. The fields of an event class are the fields of its JSON.

An event has neither number nor time; the event log adds both when it stores the event (see `EventRecord`).

A new event type is a subclass of `Event` and one line in `EVENT_TYPES`. Its JSON and its OpenAPI schema are derived
from its fields; the class also declares its effect on the session and on chat streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from app.domain.models.message import Usage
from app.domain.models.plan import Step, StepStatus
from app.domain.models.tool import JsonObject, OpenCall, ToolkitName, ToolResult

SessionStatus = Literal["pending", "running", "waiting", "completed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChanges:
    """Changes to the summary of a session. None leaves a field as it is; the counts are added."""

    title: str | None = None
    status: SessionStatus | None = None
    latest_message: str | None = None
    assistant_messages: int = 0
    user_messages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base class of all events."""

    type: ClassVar[str]
    """Name of the event in streams and in the history. Several classes may share one."""

    final_status: ClassVar[SessionStatus | None] = None
    """Status of the session after an event that ends the run, and with it the chat streams that follow the run.

    None if the event does not end the run.
    """

    def session_changes(self) -> SessionChanges:
        """Return how this event changes the summary of its session, which the list of sessions shows."""
        return SessionChanges(status=self.final_status)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent(Event):
    """The user or the agent wrote a message."""

    type: ClassVar[str] = "message"

    role: Literal["user", "assistant"]
    content: str

    def session_changes(self) -> SessionChanges:
        """Count the message and show it in the list; a user's message starts a run."""
        if self.role == "user":
            return SessionChanges(status="running", latest_message=self.content, user_messages=1)
        return SessionChanges(latest_message=self.content, assistant_messages=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TitleEvent(Event):
    """The session has a new title."""

    type: ClassVar[str] = "title"

    title: str

    def session_changes(self) -> SessionChanges:
        """Set the title."""
        return SessionChanges(title=self.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """A step of a plan, as clients see it."""

    id: str
    description: str
    status: StepStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEvent(Event):
    """The plan changed. Each event has the whole plan."""

    type: ClassVar[str] = "plan"

    steps: tuple[PlanStep, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "PlanEvent":
        """Return the event for `steps`, without the results, which only the model reads."""
        shown = (PlanStep(id=step.id, description=step.description, status=step.status) for step in steps)
        return cls(steps=tuple(shown))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent(Event):
    """A step started or ended."""

    type: ClassVar[str] = "step"

    id: str
    description: str
    status: Annotated[StepStatus, Field(json_schema_extra={"enum": ["running", "completed", "failed"]})]

    @classmethod
    def of(cls, step: Step) -> "StepEvent":
        """Return the event for the status of `step`."""
        return cls(id=step.id, description=step.description, status=step.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToolEvent(Event):
    """Base class of the events of a tool call."""

    type: ClassVar[str] = "tool"

    tool_call_id: str
    name: ToolkitName
    function: Annotated[str, Field(examples=["shell_exec"])]
    args: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallingEvent(_ToolEvent):
    """A tool call is about to start."""

    status: Literal["calling"] = "calling"

    @classmethod
    def of(cls, call: OpenCall) -> "ToolCallingEvent":
        """Return the event for `call`."""
        return cls(tool_call_id=call.id, name=call.toolkit, function=call.function, args=call.args)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOutcome:
    """The outcome of a tool call."""

    success: bool
    message: str
    data: JsonObject | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCalledEvent(_ToolEvent):
    """A tool call ended. `content` is what a client shows of it."""

    status: Literal["called"] = "called"
    content: JsonObject | None
    result: ToolOutcome

    @classmethod
    def of(cls, call: OpenCall, result: ToolResult) -> "ToolCalledEvent":
        """Return the event for `call` and its `result`, without the text, which only the model reads."""
        return cls(
            tool_call_id=call.id,
            name=call.toolkit,
            function=call.function,
            args=call.args,
            content=result.content,
            result=ToolOutcome(success=result.success, message=result.message, data=result.data),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUsage:
    """Model calls, tokens and cost of a run or of a session. `cost` is left out if no price is known."""

    model_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    @classmethod
    def of(cls, usage: Usage) -> "RunUsage":
        """Return `usage` as clients see it."""
        return cls(
            model_calls=usage.calls,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            completion_tokens=usage.completion_tokens,
            # A sum of prices has more digits than it is worth.
            cost=None if usage.cost is None else round(usage.cost, 10),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEvent(Event):
    """The agent asked the user a question, or the run reached a limit; it rests until the next message."""

    type: ClassVar[str] = "wait"
    final_status: ClassVar[SessionStatus | None] = "waiting"

    usage: RunUsage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent(Event):
    """The run failed."""

    type: ClassVar[str] = "error"
    final_status: ClassVar[SessionStatus | None] = "completed"

    error: Annotated[str, Field(description="What failed, for the user.")]
    usage: RunUsage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneEvent(Event):
    """The run ended."""

    type: ClassVar[str] = "done"
    final_status: ClassVar[SessionStatus | None] = "completed"

    usage: RunUsage | None = None


EVENT_TYPES: list[type[Event]] = [
    MessageEvent,
    TitleEvent,
    PlanEvent,
    StepEvent,
    ToolCallingEvent,
    ToolCalledEvent,
    WaitEvent,
    ErrorEvent,
    DoneEvent,
]
"""Every event class, in the order in which the API's documentation lists them."""

TERMINAL: frozenset[str] = frozenset(event.type for event in EVENT_TYPES if event.final_status)
"""Types of the events that end a run, and with it the chat streams that follow the run."""

LISTED = TERMINAL | {event.type for event in EVENT_TYPES if event.session_changes is not Event.session_changes}
"""Types of the events that can change the list of sessions."""


class EventRecord(NamedTuple):
    """A stored event: its number in the session, its type, and its JSON.

    Numbers start at 1 and have no gaps. `data` is the object that clients receive, with `event_id` and `timestamp`; it
    is encoded once. This is a tuple because a long history creates thousands of them at once.
    """

    number: int
    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class StatusDelta:
    """Report of what a run waits for. It is never stored."""

    text: str
    retry_in: float | None = None
    """Seconds until the next attempt; None if unknown."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A part of a message while the model writes it. It is never stored."""

    message_id: str
    delta: str
