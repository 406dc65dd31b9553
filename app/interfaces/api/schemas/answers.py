"""JSON answers: the envelope, and the data in it."""

from typing import Literal

from pydantic import Field

from app.interfaces.api.schemas import Schema
from app.interfaces.api.schemas.events import EventItem

SessionStatus = Literal["pending", "active", "waiting", "completed"]


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
    """It is done."""

    data: None


class Created(Schema):
    """A new session."""

    session_id: str


class CreatedAnswer(SuccessAnswer):
    """See `Created`."""

    data: Created


class SessionDetail(Schema):
    """A session with its events, or the part of them that was asked for, in order."""

    session_id: str
    title: str | None = Field(description="null as long as the agent has not named it.")
    status: SessionStatus
    events: list[EventItem]


class SessionAnswer(SuccessAnswer):
    """See `SessionDetail`."""

    data: SessionDetail


class SessionSummary(Schema):
    """A session in a list."""

    session_id: str
    title: str | None
    latest_message: str | None
    latest_message_at: int | None = Field(description="Whole seconds since the epoch, UTC.")
    status: SessionStatus
    unread_message_count: int = Field(description="Messages of the agent that no chat stream has delivered yet.")


class SessionList(Schema):
    """One page of sessions, latest first."""

    sessions: list[SessionSummary]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class SessionsAnswer(SuccessAnswer):
    """See `SessionList`."""

    data: SessionList


class ConsoleLine(Schema):
    """A command on a console: the prompt, the command and what it printed."""

    ps1: str
    command: str
    output: str


class ShellView(Schema):
    """A shell's console."""

    output: str
    session_id: str = Field(description="The shell's id.")
    console: list[ConsoleLine]


class ShellAnswer(SuccessAnswer):
    """See `ShellView`."""

    data: ShellView


class FileView(Schema):
    """A text file."""

    content: str
    file: str


class FileAnswer(SuccessAnswer):
    """See `FileView`."""

    data: FileView


class IssuedTicket(Schema):
    """A new ticket: for one request, within 30 seconds."""

    ticket: str = Field(description="Goes into the query of what it opens, as `?ticket=`.")
    expires_at: int = Field(description="Whole seconds since the epoch, UTC.")


class TicketAnswer(SuccessAnswer):
    """See `IssuedTicket`."""

    data: IssuedTicket


class Health(Schema):
    """The process answers."""

    status: Literal["ok"]


class HealthAnswer(SuccessAnswer):
    """See `Health`."""

    data: Health


class ReadyAnswer(SuccessAnswer):
    """The state of each dependency by its name."""

    data: dict[str, Literal["ok"]] = Field(examples=[{"store": "ok", "sandbox": "ok"}])
