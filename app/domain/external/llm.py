"""Port: a language model that can call tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from app.domain.models.message import ToolCall, Transcript, Usage
from app.domain.models.tool import ToolSpec

FinishReason = Literal["stop", "tool_calls", "length", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One request to the model: the transcript so far and the tools it may call. Without tools it returns text.

    Pass the same `Transcript` object and the same `tools` tuple in every turn: adapters encode both only once.
    """

    transcript: Transcript
    tools: Sequence[ToolSpec] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """One turn of the model, unchecked: arguments may be invalid JSON, IDs empty or repeated, text empty."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: FinishReason = "stop"
    usage: Usage = Usage()


class ReplyListener(Protocol):
    """Receives a reply while the model writes it. Methods are called on the event loop and must not block."""

    def text(self, delta: str) -> None:
        """Receive a piece of the reply's text."""
        ...

    def arguments(self, name: str, delta: str) -> None:
        """Receive a piece of the JSON arguments of a call to the tool `name`."""
        ...

    def restart(self) -> None:
        """Discard what was received: the reply broke off and is requested again."""
        ...


class LLM(Protocol):
    """A model. Cancelling a call closes the connection, so that the provider stops generating.

    Raises:
        ModelFailure: No reply after a limited number of retries. The message says what the user can do.
    """

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """Return the model's next turn."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
