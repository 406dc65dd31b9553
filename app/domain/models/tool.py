"""Tool specifications, open tool calls, and their results."""

import base64
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

    @classmethod
    def of_jpeg(cls, jpeg: bytes) -> "Image | None":
        """Return a JPEG as a picture; None if it is no JPEG."""
        size = _jpeg_size(jpeg)
        if size is None:
            return None
        return cls(media_type="image/jpeg", base64=base64.b64encode(jpeg).decode(), width=size[0], height=size[1])


_JPEG_START = b"\xff\xd8"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments of a JPEG that hold its size."""


def _jpeg_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return width and height, which are in the segment of the frame; None if there is none."""
    position = len(_JPEG_START)
    while jpeg.startswith(_JPEG_START) and position + 9 <= len(jpeg) and jpeg[position] == 0xFF:
        if jpeg[position + 1] in _JPEG_FRAMES:
            height = int.from_bytes(jpeg[position + 5 : position + 7])
            width = int.from_bytes(jpeg[position + 7 : position + 9])
            return width, height
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A function that the model may call. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedText:
    """Place of a text in the sandbox."""

    file: str
    first_line: int | None = 0
    """Number of the text's first line in the file, from 0; None if the text is not a part of the file as it is."""
    first_char: int = 0
    """Number of the text's first character, from 0 at the start of that line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """The result of a tool call.

    Clients receive `message` and `data` in `result`, and show `content`. The model reads `text`, which states the same
    facts in as few tokens as possible. A tool returns the whole text; `fit_result` shortens it.
    """

    text: str
    saved: SavedText | None = None
    """The file that holds the whole text, if there is one already."""
    message: str = ""
    success: bool = True
    data: JsonObject | None = None
    content: JsonObject | None = None
    is_running: bool = False
    """Whether what the call looked at still runs. To look again is to wait, and not a circle."""
    images: tuple[Image, ...] = ()
    """Pictures for a model that sees. A model that does not see reads only `text`."""

    @property
    def failed(self) -> bool:
        """Whether the call, or the command that it ran, ended with an error."""
        return not self.success or bool((self.data or {}).get("returncode"))


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A tool call with a `calling` event and no `called` event yet."""

    id: str
    toolkit: ToolkitName
    function: str
    args: JsonObject = field(default_factory=dict[str, object])
