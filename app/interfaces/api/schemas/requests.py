"""The bodies of requests. Unknown fields are ignored, so that newer clients can talk to older servers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, StringConstraints

LATEST = 253_402_300_799
"""The last second of the year 9999."""


class RequestBody(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(frozen=True)


class ChatBody(RequestBody):
    """A message to the agent, or, without one, the wish to follow what is going on. Every field may be null."""

    message: StrictStr | None = Field(
        None, description="At most 100,000 characters. Absent or blank: attach.", examples=["Which files are here?"]
    )
    timestamp: Annotated[StrictInt, Field(ge=0, le=LATEST)] | None = Field(
        None, description="When it was said, whole seconds since the epoch, UTC; now when absent."
    )
    event_id: StrictStr | None = Field(None, description="The last event that the client has.")
    stream: StrictBool | None = Field(None, description="Also send `message_delta` while the agent writes a message.")


class ShellBody(RequestBody):
    """Which shell to look at."""

    session_id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200)] = Field(
        description="The shell's id, as in the tools' argument `id`."
    )


class TicketBody(RequestBody):
    """What a ticket is for."""

    session_id: StrictStr = Field(description="The session that it opens.")
    view_only: StrictBool | None = Field(
        None, description="A desktop that it opens is only watched: keyboard, pointer and clipboard are dropped."
    )


class FileBody(RequestBody):
    """Which file to read."""

    file: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096)] = Field(
        description="A path, absolute or relative to the workspace.", examples=["notes.md"]
    )
