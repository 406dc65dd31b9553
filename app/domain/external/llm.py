"""Port: a language model with tool calling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from app.domain.models.message import ToolCall, Transcript, Usage
from app.domain.models.tool import ToolSpec

FinishReason = Literal["stop", "tool_calls", "length", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One question to the model: the conversation so far and the functions it may call (none: a plain answer).

    Pass the same `Transcript` object and the same `tools` tuple from turn to turn: adapters encode both once.
    """

    transcript: Transcript
    tools: Sequence[ToolSpec] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """The model's whole turn, as it came: arguments may be broken JSON, ids empty or repeated, text empty."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: FinishReason = "stop"
    usage: Usage = Usage()


class ReplyListener(Protocol):
    """Hears a reply while it is written. Called on the event loop; must return at once."""

    def text(self, delta: str) -> None:
        """More of the reply's text."""
        ...

    def arguments(self, name: str, delta: str) -> None:
        """More of the JSON arguments of the call to `name`."""
        ...

    def restart(self) -> None:
        """The reply broke off and is being asked for again: forget what was heard."""
        ...


class LLM(Protocol):
    """A model. Cancelling the awaiting task closes the connection, so that the provider stops writing.

    Raises:
        ModelFailure: no answer after the adapter's bounded retries; the message says what a person can do.
    """

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """The model's next turn."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
