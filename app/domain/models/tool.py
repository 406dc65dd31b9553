"""Tool specifications, calls under way, and their results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ToolkitName = Literal["shell", "file", "browser", "search", "message", "mcp"]
"""The groups that clients key their icons on; `name` in a tool event."""

JsonObject = Mapping[str, object]
"""A JSON object in plain Python values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What the model is told about one function. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """How a call ended.

    `message` and `data` go to clients as `result`, `content` beside it as what a person would look at. `text` is what
    the model reads: the same facts in as few tokens as possible.
    """

    success: bool
    text: str
    message: str = ""
    data: JsonObject | None = None
    content: JsonObject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A tool call that was announced as `calling` and has no `called` yet."""

    id: str
    toolkit: ToolkitName
    function: str
    args: JsonObject = field(default_factory=dict[str, object])
