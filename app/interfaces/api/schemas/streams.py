"""Server-Sent Events: each frame as the object that its lines make up. `data` is sent as one line of JSON."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, RootModel

from app.interfaces.api.schemas import Schema
from app.interfaces.api.schemas.answers import SessionList
from app.interfaces.api.schemas.events import (
    DoneItem,
    ErrorItem,
    MessageItem,
    PlanItem,
    StepItem,
    TitleItem,
    ToolItem,
    WaitItem,
)


class _Stored(Schema):
    id: str = Field(description="The event's `event_id`: where a client that comes back goes on.")


class MessageFrame(_Stored, MessageItem):
    """See `MessageData`."""


class TitleFrame(_Stored, TitleItem):
    """See `TitleData`."""


class PlanFrame(_Stored, PlanItem):
    """See `PlanData`."""


class StepFrame(_Stored, StepItem):
    """See `StepData`."""


class ToolFrame(_Stored, ToolItem):
    """See `ToolCallingData` and `ToolCalledData`."""


class WaitFrame(_Stored, WaitItem):
    """See `WaitData`; the last frame of a chat stream."""


class ErrorFrame(_Stored, ErrorItem):
    """See `ErrorData`; the last frame of a chat stream."""


class DoneFrame(_Stored, DoneItem):
    """See `DoneData`; the last frame of a chat stream."""


class MessageDelta(Schema):
    """A piece of a message before the `message` that holds the whole."""

    message_id: str
    delta: str


class MessageDeltaFrame(Schema):
    """Only when the request says `"stream": true`. Never stored, so it has no `id`."""

    event: Literal["message_delta"]
    data: MessageDelta


class SessionsFrame(Schema):
    """The first page of sessions as it now is."""

    event: Literal["sessions"]
    data: SessionList


_Frames = MessageFrame | TitleFrame | PlanFrame | StepFrame | ToolFrame | WaitFrame | ErrorFrame | DoneFrame


class EventFrame(RootModel[Annotated[_Frames, Field(discriminator="event")]]):
    """A stored event on a stream."""

    model_config = ConfigDict(defer_build=True)


class LiveFrame(RootModel[Annotated[_Frames | MessageDeltaFrame, Field(discriminator="event")]]):
    """A stored event on a stream, or a piece of a message that is being written."""

    model_config = ConfigDict(defer_build=True)
