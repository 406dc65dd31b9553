"""A strict model server's view of a run: its prompts are measured, and what a strict server refuses is refused."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import orjson

from tests.fakes.scripted_openai import Answer, Asked, Reply, Status
from tests.support.strict_server import violation

BYTES_PER_TOKEN = 3.5
"""Number of bytes of a prompt that the server counts as one token."""


@dataclass(slots=True)
class Figures:
    """What a run cost its model server. A request that the server refused as too long is counted apart."""

    calls: int = 0
    prompt_tokens: int = 0
    """Sum over all requests, by the server's count."""
    sent_bytes: int = 0
    prompt_bytes: int = 0
    identical_bytes: int = 0
    """Prompt bytes that are the same as at the beginning of the request before."""
    largest_prompt: int = 0
    """In tokens."""
    first_executing_bytes: int = 0
    overflows: int = 0
    """Number of requests that exceeded the window."""
    refusals: list[str] = field(default_factory=list[str])
    """Why other requests were refused."""
    outside: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """The end of each answer and the arrival of the request after it, in monotonic seconds."""

    @property
    def identical_share(self) -> float:
        """The share of all prompt bytes that repeats the request before."""
        return self.identical_bytes / self.prompt_bytes if self.prompt_bytes else 0.0

    @property
    def outside_milliseconds(self) -> list[float]:
        """The times between an answer and the next request, tools included."""
        return [1e3 * (end - start) for start, end in self.outside]


class MeteredModel:
    """A script for `ScriptedOpenAI`: checks and measures each request before `script` answers it.

    The usage that it reports is its own count. `MODEL_CONTEXT_TOKENS` should be `window`, and `MAX_TOKENS` what the
    requests name: the server wants room for the reply too.

    Args:
        script: Returns the answer to a request that is not refused.
        window: Context size in tokens; None: unlimited.
        bytes_per_token: See `BYTES_PER_TOKEN`.
        extra_fields: Fields of messages that the server knows beyond the standard.
    """

    def __init__(
        self,
        script: Callable[[Asked], Answer],
        *,
        window: int | None = None,
        bytes_per_token: float = BYTES_PER_TOKEN,
        extra_fields: frozenset[str] = frozenset(),
    ) -> None:
        self.script = script
        self.figures = Figures()
        self.newest: Asked | None = None
        """The newest request that was not refused."""
        self._window = window
        self._bytes_per_token = bytes_per_token
        self._extra_fields = extra_fields
        self._before = b""
        self._last: Asked | None = None

    def __call__(self, asked: Asked) -> Answer:
        prompt = _prompt(asked)
        tokens = math.ceil(len(prompt) / self._bytes_per_token)
        shared = common_prefix(self._before, prompt)
        self._measure(asked, prompt, tokens, shared)
        if problem := violation(asked.body, extra_fields=self._extra_fields):
            self.figures.refusals.append(problem)
            return Status(status=400, body={"error": {"message": problem, "type": "invalid_request_error"}})
        reserved = int(asked.body.get("max_tokens") or asked.body.get("max_completion_tokens") or 0)
        if self._window is not None and tokens + reserved > self._window:
            self.figures.overflows += 1
            return too_long(self._window, tokens, reserved)
        self.figures.largest_prompt = max(self.figures.largest_prompt, tokens)
        self.newest = asked
        answer = self.script(asked)
        if isinstance(answer, Reply):
            cached = math.floor(shared / self._bytes_per_token)
            return replace(answer, prompt_tokens=tokens, cached_tokens=cached)
        return answer

    def _measure(self, asked: Asked, prompt: bytes, tokens: int, shared: int) -> None:
        figures = self.figures
        if self._last is not None:
            figures.outside.append((self._last.answered_at, asked.at))
        if asked.kind == "executing" and not figures.first_executing_bytes:
            figures.first_executing_bytes = len(asked.raw)
        figures.calls += 1
        figures.prompt_tokens += tokens
        figures.sent_bytes += len(asked.raw)
        figures.prompt_bytes += len(prompt)
        figures.identical_bytes += shared
        self._before, self._last = prompt, asked


def too_long(window: int, tokens: int, reserved: int) -> Status:
    """Return the refusal of a request that exceeds the window, in OpenAI's words."""
    message = (
        f"This model's maximum context length is {window} tokens. However, you requested {tokens + reserved} tokens "
        f"({tokens} in the messages, {reserved} in the completion). Please reduce the length of the messages."
    )
    error = {"message": message, "type": "invalid_request_error", "code": "context_length_exceeded"}
    return Status(status=400, body={"error": error})


def common_prefix(one: bytes, other: bytes) -> int:
    """Return the length of the longest common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _prompt(asked: Asked) -> bytes:
    """Return what a model reads of a request: tools before messages, as the templates of most models have it."""
    return orjson.dumps(asked.body.get("tools") or []) + orjson.dumps(asked.messages)
