"""Messages and transcripts: the conversation with the model, independent of any provider's wire format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call requested by the model. In a stored transcript, `arguments` is always a valid JSON object."""

    id: str
    name: str
    arguments: str
    """The arguments as JSON text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemMessage:
    """The system prompt."""

    content: str
    role: Literal["system"] = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMessage:
    """A message from the user, or from the service in the user's role."""

    content: str
    role: Literal["user"] = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantMessage:
    """A turn of the model: text, tool calls, or both."""

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    role: Literal["assistant"] = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMessage:
    """The result of one tool call. Every call needs one before the next request to the model."""

    tool_call_id: str
    content: str
    role: Literal["tool"] = "tool"


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class Transcript:
    """An append-only list of messages.

    Two readers depend on it being append-only: the provider's prompt cache needs a stable prefix, and adapters encode
    each message once and then read only the new ones.
    """

    __slots__ = ("__weakref__", "_messages")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages = list(messages)

    def __len__(self) -> int:
        return len(self._messages)

    def append(self, *messages: Message) -> None:
        """Append `messages`."""
        self._messages.extend(messages)

    def since(self, position: int) -> Sequence[Message]:
        """Return the messages from index `position` on."""
        return self._messages[position:]

    @property
    def unanswered(self) -> tuple[ToolCall, ...]:
        """The tool calls of the last assistant message that have no result yet, in order."""
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
    """Tokens and model calls, as counted by the provider."""

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
