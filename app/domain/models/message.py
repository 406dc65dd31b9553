"""Messages and transcripts: the conversation with the model, independent of any provider's wire format."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from app.domain.models.tool import Image, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call as the model wrote it. Name and arguments may be invalid: adapters send a valid form of both."""

    id: str
    name: str
    arguments: str
    """The arguments, JSON text if the model made no mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderFields:
    """Fields of a turn that only the model that wrote it understands, such as reasoning or signatures of calls.

    They are stored with the turn and sent back unchanged to the same model, never to another one or to a user.
    """

    source: str
    """`ModelProfile.identity` of the model that wrote the turn."""
    message: JsonObject = field(default_factory=dict[str, object])
    """Fields of the message."""
    calls: tuple[JsonObject, ...] = ()
    """Fields of each tool call, in the order of `tool_calls`; empty if no call has any."""


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
    provider_fields: ProviderFields | None = None
    role: Literal["assistant"] = "assistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMessage:
    """The result of one tool call. Every call needs one before the next request to the model."""

    tool_call_id: str
    content: str
    images: tuple[Image, ...] = ()
    """Pictures for a model that sees."""
    file: str = ""
    """Path in the sandbox of a file with the whole result; empty if there is none."""
    role: Literal["tool"] = "tool"


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRecord:
    """Record after which the model is shown a note in place of each older tool result."""

    before: int
    """Number of messages, system prompt included, whose results are masked."""
    images_only: bool = False
    """Whether only the pictures of the results are left out."""
    role: Literal["mask"] = "mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRecord:
    """Record after which the model is shown the messages that follow it, and none before it.

    They begin with a summary. A transcript is therefore loaded from its newest record on.
    """

    role: Literal["summary"] = "summary"


TranscriptEntry = Message | MaskRecord | SummaryRecord
"""What a stored transcript consists of. It is append-only: records change only what the model is shown."""


class Transcript:
    """An append-only list of messages, as the model is shown them.

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
    """Tokens, model calls and their cost, as counted by the provider."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Part of `prompt_tokens` that the provider read from its cache."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of `completion_tokens` that the model used to think."""
    calls: int = 0
    cost: float | None = None
    """Cost in the currency of the profile's prices; None if no call had a price."""

    @property
    def total_tokens(self) -> int:
        """Tokens of prompts and replies together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            calls=self.calls + other.calls,
            cost=sum(costs) if costs else None,
        )
