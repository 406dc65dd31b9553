"""Port: language models that can call tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from app.domain.errors import InvalidInput
from app.domain.models.message import ProviderFields, ToolCall, Transcript, Usage
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import ToolSpec

FinishReason = Literal["stop", "tool_calls", "length", "refused"]

FailureKind = Literal[
    "auth",
    "credit",
    "rate_limit",
    "overloaded",
    "context",
    "filter",
    "malformed",
    "parameter",
    "request",
    "unreachable",
    "timeout",
    "broken",
    "other",
]
"""Kinds of failed attempts at a model call, for metrics. `parameter`: one that is left out from then on."""


TEXT_CALLS_HINT = (
    "the model wrote its function calls as text, so its server seems to have no tool-call parser enabled "
    "(vLLM: --enable-auto-tool-choice and --tool-call-parser; llama.cpp: --jinja; others: see their documentation)"
)
"""The likely cause and remedy when calls written as text cannot be understood, for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One request to the model: the transcript so far and the tools it may call. Without tools it returns text.

    Pass the same `Transcript` object and the same `tools` tuple in every turn: adapters encode both only once.
    """

    transcript: Transcript
    tools: Sequence[ToolSpec] = ()
    max_tokens: int | None = None
    """Maximum length of the reply in tokens, at most the profile's `output_limit`; None: the profile's `max_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """One turn of the model, unchecked: arguments may be invalid JSON, IDs empty or repeated, text empty.

    `content` is for the user: it has no thinking and no markup of tool calls.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    text_calls: bool = False
    """Whether the model wrote calls as text. If there are no `tool_calls`, they could not be understood or used."""
    provider_fields: ProviderFields | None = None
    finish: FinishReason = "stop"
    usage: Usage = Usage()
    model: str = ""
    """Name of the model as its server reports it; empty if it does not, or no plain name."""


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

    def waiting(self, text: str, retry_in: float | None) -> None:
        """Learn that the call waits. `text` says why, for the user; `retry_in`: seconds until the next attempt."""
        ...


class ModelObserver(Protocol):
    """Counts what happens to the calls of one model. Methods are called on the event loop and must not block."""

    def failed(self, kind: FailureKind) -> None:
        """Count an attempt that failed, whether or not it is repeated."""
        ...

    def first_token(self, seconds: float) -> None:
        """Record the time from the request to the first part of the reply."""
        ...

    def replied(self, usage: Usage) -> None:
        """Count a complete reply."""
        ...


class LLM(Protocol):
    """A model. Cancelling a call closes the connection, so that the provider stops generating.

    Raises:
        ContextTooLong: The server says that the request exceeds the context window.
        MalformedReply: The server says that the model wrote an invalid tool call.
        ModelFailure: No reply after a limited number of retries. The message says what the user can do.
    """

    @property
    def profile(self) -> ModelProfile:
        """The profile of this model."""
        ...

    async def complete(self, request: ModelRequest, *, listener: ReplyListener | None = None) -> ModelReply:
        """Return the model's next turn."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCatalog:
    """The models of the service."""

    models: Mapping[str, LLM]
    """Models by the names of their profiles, in the order of the configuration."""
    default: str
    """Name of the profile of a session that names none."""
    planner: str = ""
    """Name of the profile that plans and answers; empty: the session's profile."""

    def check(self, name: str) -> None:
        """Check that there is a profile `name`.

        Raises:
            InvalidInput: There is none. The message names the known ones.
        """
        if name not in self.models:
            raise InvalidInput(f"model: unknown; the models are {', '.join(self.models)}")

    def name_of(self, name: str) -> str:
        """Return the name of the profile that a session with profile `name` uses.

        It is the default for an empty name, and for a profile that was removed from the configuration.
        """
        return name if name in self.models else self.default

    def executor_of(self, name: str) -> LLM:
        """Return the model that carries out the steps of a session with profile `name`."""
        return self.models[self.name_of(name)]

    def planner_of(self, name: str) -> LLM:
        """Return the model that plans and answers in a session with profile `name`."""
        return self.models[self.planner] if self.planner else self.executor_of(name)

    async def close(self) -> None:
        """Close all models."""
        for model in self.models.values():
            await model.close()
