"""Schemas that several routes share: the envelopes, and the events, which are derived from the event classes.

Schemas describe responses in the OpenAPI document. Routes send encoded bytes; tests compare the two.
"""

from dataclasses import fields
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model
from pydantic.json_schema import SkipJsonSchema

from app.domain.models.event import EVENT_TYPES, Event, RunUsage
from app.domain.models.tool import ToolkitName
from app.domain.services.tools.registry import TOOLKITS

RESERVED_TOOLKITS = ("mcp",)
"""Names that the wire contract reserves for toolkits that do not exist yet."""


class Schema(BaseModel):
    """Base class of schemas. A schema is built when the document is first requested, which keeps the start fast."""

    model_config = ConfigDict(defer_build=True)


class SuccessAnswer(Schema):
    """The envelope of every JSON answer."""

    code: Literal[0]
    msg: Literal["success"]


class FailureAnswer(Schema):
    """The envelope of every failure."""

    code: int = Field(description="The HTTP status.", examples=[404])
    msg: str = Field(description="What went wrong, for a person.", examples=["no such session"])
    data: None


class EmptyAnswer(SuccessAnswer):
    """The request succeeded; there is no data."""

    data: None


class EventData(Schema):
    """Fields that the data of every event has."""

    event_id: str = Field(description="Unique and increasing within the session.", examples=["000000000007"])
    timestamp: int = Field(description="Whole seconds since the epoch, UTC.", examples=[1767225600])


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _left_out(description: str | None = None) -> Any:
    """Return a field that is left out of the data when it has no value; it is never null."""
    return Field(None, description=description, json_schema_extra=_drop_default)


class UsageData(Schema):
    """Model calls and tokens of a run, or of all runs of a session."""

    model_calls: int
    prompt_tokens: int
    cached_tokens: int = Field(description="Part of `prompt_tokens` that the provider read from its cache.")
    reasoning_tokens: int = Field(description="Part of `completion_tokens` that the model used to think.")
    completion_tokens: int
    cost: float | SkipJsonSchema[None] = _left_out("In the currency of the prices; left out if no price is known.")


class MessageDelta(Schema):
    """A part of a message, sent before the `message` event that has the whole."""

    message_id: str
    delta: str


class MessageDeltaFrame(Schema):
    """Sent only if the request has `"stream": true`. It is never stored, so it has no `id`."""

    event: Literal["message_delta"]
    data: MessageDelta


class StatusData(Schema):
    """Report of what the run waits for, such as a rate limit of the model's server."""

    text: str
    retry_in: float | None = Field(None, description="Seconds until the next attempt; absent if unknown.")


class StatusDeltaFrame(Schema):
    """Sent only if the request has `"stream": true`. It is never stored, so it has no `id`."""

    event: Literal["status_delta"]
    data: StatusData


def _union(models: list[type[Schema]], discriminator: str) -> Any:
    if len(models) == 1:
        return models[0]
    return Annotated[cast("Any", Union)[tuple(models)], Field(discriminator=discriminator)]


def _data_schema(event_type: type[Event]) -> type[Schema]:
    """Create the schema of the `data` of an event, with the fields of its class."""
    toolkit = Annotated[str, Field(json_schema_extra={"enum": [*TOOLKITS, *RESERVED_TOOLKITS]})]
    hints = get_type_hints(event_type, include_extras=True)
    documented = {ToolkitName: toolkit, RunUsage | None: UsageData | SkipJsonSchema[None]}
    definitions: dict[str, Any] = {
        field.name: (
            documented.get(hints[field.name], hints[field.name]),
            # A field whose default is None is left out of the data when it is None.
            _left_out() if field.default is None else ...,
        )
        for field in fields(event_type)
    }
    name = event_type.__name__.removesuffix("Event") + "Data"
    return create_model(name, __base__=EventData, __doc__=event_type.__doc__, **definitions)


def _item_schema(name: str, event_types: list[type[Event]]) -> type[Schema]:
    """Create the schema of an event of type `name` in the history."""
    data = _union([_data_schema(event_type) for event_type in event_types], "status")
    constant = cast("Any", Literal)[name]
    doc = f"Event `{name}`."
    return create_model(
        name.capitalize() + "Item", __base__=Schema, __doc__=doc, event=(constant, ...), data=(data, ...)
    )


def _frame_schema(item: type[Schema]) -> type[Schema]:
    """Create the schema of a frame of a stream: an item of the history with the event's id."""
    frame_id = Annotated[
        str, Field(description="The event's `event_id`: a client that reconnects continues from here.")
    ]
    name = item.__name__.removesuffix("Item") + "Frame"
    return create_model(name, __base__=item, __doc__=item.__doc__, id=(frame_id, ...))


class _AnyFrame(RootModel[Any]):
    model_config = ConfigDict(defer_build=True)


_BY_TYPE = {name: list(types) for name, types in groupby(EVENT_TYPES, key=lambda event_type: event_type.type)}
_ITEMS = [_item_schema(name, types) for name, types in _BY_TYPE.items()]
_FRAMES = [_frame_schema(item) for item in _ITEMS]

if TYPE_CHECKING:
    EventItem = Schema
else:
    EventItem = _union(_ITEMS, "event")

EventFrame: type[RootModel[Any]] = create_model(
    "EventFrame", __base__=_AnyFrame, __doc__="A stored event on a stream.", root=(_union(_FRAMES, "event"), ...)
)
LiveFrame: type[RootModel[Any]] = create_model(
    "LiveFrame",
    __base__=_AnyFrame,
    __doc__="A stored event on a stream, a part of a message that is being written, or a status.",
    root=(_union([*_FRAMES, MessageDeltaFrame, StatusDeltaFrame], "event"), ...),
)
