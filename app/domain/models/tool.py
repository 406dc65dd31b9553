"""Tool specifications, open tool calls, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

ToolkitName = Annotated[str, "a key of TOOLKITS"]
"""Name of a toolkit: a key of `TOOLKITS`. It is the `name` of a tool event, by which clients choose an icon."""

JsonObject = Mapping[str, object]
"""A JSON object as plain Python values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A picture that the model is shown, already scaled. It is part of a transcript, so keep it small."""

    media_type: str
    """`image/jpeg` or `image/png`."""
    base64: str = field(repr=False)
    width: int
    height: int
    """Size in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A function that the model may call. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """The result of a tool call.

    Clients receive `message` and `data` in `result`, and show `content`. The model reads `text`, which states the same
    facts in as few tokens as possible.
    """

    text: str
    message: str = ""
    success: bool = True
    data: JsonObject | None = None
    content: JsonObject | None = None
    images: tuple[Image, ...] = ()
    """Pictures for a model that sees. A model that does not see reads only `text`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A tool call with a `calling` event and no `called` event yet."""

    id: str
    toolkit: ToolkitName
    function: str
    args: JsonObject = field(default_factory=dict[str, object])
