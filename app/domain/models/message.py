"""What the model was told and what it said, apart from any provider's wire format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks for. `arguments` is a JSON object as text, always parseable once stored."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemMessage:
    """The standing instructions."""

    content: str
    role: Literal["system"] = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage:
    """Words of the user, or of the service on the user's behalf."""

    content: str
    role: Literal["user"] = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantMessage:
    """The model's turn: text, tool calls, or both."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    role: Literal["assistant"] = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMessage:
    """The answer to one tool call. Every call must get one before the model is asked again."""

    tool_call_id: str
    content: str
    role: Literal["tool"] = "tool"


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class Transcript:
    """An append-only conversation with the model.

    Append-only is a promise to two readers: a provider's prompt cache, which needs a stable prefix, and the adapters,
    which encode each message once and only ever look at what was added since.
    """

    __slots__ = ("__weakref__", "_messages")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages = list(messages)

    def __len__(self) -> int:
        return len(self._messages)

    def append(self, *messages: Message) -> None:
        """Add `messages` at the end."""
        self._messages.extend(messages)

    def since(self, position: int) -> Sequence[Message]:
        """Everything from index `position` on; 0 for the whole."""
        return self._messages[position:]

    @property
    def unanswered(self) -> tuple[ToolCall, ...]:
        """The tool calls of the last assistant turn that have no answer yet, in their order."""
        answered: set[str] = set()
        for message in reversed(self._messages):
            match message:
                case ToolMessage():
                    answered.add(message.tool_call_id)
                case AssistantMessage():
                    return tuple(call for call in message.tool_calls if call.id not in answered)
                case _:
                    pass
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and calls that the model cost, as the provider counted them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            calls=self.calls + other.calls,
        )
