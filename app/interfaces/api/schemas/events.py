"""The events of a session: the `data` of each, and the pairs of `event` and `data` that a history consists of."""

from typing import Annotated, Literal

from pydantic import Field

from app.interfaces.api.schemas import Schema


class EventData(Schema):
    """What the data of every event has."""

    event_id: str = Field(description="Unique and growing within the session.", examples=["000000000007"])
    timestamp: int = Field(description="Whole seconds since the epoch, UTC.", examples=[1767225600])


class MessageData(EventData):
    """Words of the user or of the agent."""

    role: Literal["user", "assistant"]
    content: str


class TitleData(EventData):
    """What the session is now called."""

    title: str


class PlanStep(Schema):
    """A step of a plan."""

    id: str
    description: str
    status: Literal["pending", "running", "completed", "failed"]


class PlanData(EventData):
    """The whole plan as it now stands."""

    steps: list[PlanStep]


class StepData(EventData):
    """A step began or ended."""

    id: str
    description: str
    status: Literal["running", "completed", "failed"]


class _Call(EventData):
    tool_call_id: str
    name: Literal["shell", "file", "browser", "search", "message", "mcp"]
    function: str = Field(examples=["shell_exec"])
    args: dict[str, object]


class ToolCallingData(_Call):
    """A tool call is about to start."""

    status: Literal["calling"]


class ToolOutcome(Schema):
    """How a tool call ended."""

    success: bool
    message: str
    data: dict[str, object] | None


class ToolCalledData(_Call):
    """A tool call ended, well or not. `content` is what a person would look at."""

    status: Literal["called"]
    content: dict[str, object] | None
    result: ToolOutcome


class WaitData(EventData):
    """The agent asked; the run rests until the next message."""


class ErrorData(EventData):
    """The run failed."""

    error: str = Field(description="What failed, in words.")


class DoneData(EventData):
    """The run ended."""


ToolData = Annotated[ToolCallingData | ToolCalledData, Field(discriminator="status")]


class MessageItem(Schema):
    """Event `message`."""

    event: Literal["message"]
    data: MessageData


class TitleItem(Schema):
    """Event `title`."""

    event: Literal["title"]
    data: TitleData


class PlanItem(Schema):
    """Event `plan`."""

    event: Literal["plan"]
    data: PlanData


class StepItem(Schema):
    """Event `step`."""

    event: Literal["step"]
    data: StepData


class ToolItem(Schema):
    """Event `tool`."""

    event: Literal["tool"]
    data: ToolData


class WaitItem(Schema):
    """Event `wait`."""

    event: Literal["wait"]
    data: WaitData


class ErrorItem(Schema):
    """Event `error`."""

    event: Literal["error"]
    data: ErrorData


class DoneItem(Schema):
    """Event `done`."""

    event: Literal["done"]
    data: DoneData


EventItem = Annotated[
    MessageItem | TitleItem | PlanItem | StepItem | ToolItem | WaitItem | ErrorItem | DoneItem,
    Field(discriminator="event"),
]
