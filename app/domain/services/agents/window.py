"""The context window of a model: an estimate of the tokens of a request, calibrated by what the server counts.

No tokenizer is used: its vocabulary would have to be downloaded, and many models have none that is public.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import assert_never
from weakref import WeakKeyDictionary

from app.domain.external.llm import ModelRequest
from app.domain.models.message import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolMessage,
    Transcript,
    Usage,
    UserMessage,
)
from app.domain.models.model_profile import ModelProfile
from app.domain.models.plan import Plan
from app.domain.models.tool import Image, ToolSpec
from app.domain.services.tools.base import MAX_TEXT, clip

log = logging.getLogger(__name__)

MIN_WINDOW = 1_000
"""Smallest window in tokens that a server is believed to have."""

MAX_REPLY_SHARE = 1 / 3
"""Maximum share of the window that is reserved for the reply."""

MAX_RESULT_SHARE = 1 / 16
"""Maximum share of the window for one tool result."""

MIN_RESULT_TOKENS = 300
"""A tool result of so many tokens is never shortened."""

_MIN_RATIO, _MAX_RATIO = 0.6, 3.0
"""Bounds of the ratio of counted to estimated tokens."""

_PLAUSIBLE_RATIOS = (0.4, 6.0)
"""Reports of the server outside these ratios are taken for wrong and ignored."""

_REFUSED_SHARE = 0.8
"""Share of a refused request that is taken for the window if the server does not name a smaller size."""

_CUT_RATIO = 0.6
"""A report below this share of the ratio so far is not learned from: the server counted only a part of the prompt."""

_RATIO_DECAY = 0.2
"""Weight of a report that lowers the ratio. One that raises it counts fully, because an overflow costs most."""

_SAMPLE_CHARS = 50_000
"""Maximum number of characters of a tool result from which its tokens are estimated."""

_MESSAGE_TOKENS = 6
_CALL_TOKENS = 12
"""Tokens of a message or call besides its text."""

_LETTERS = bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1)) + b" "
_NON_ASCII = bytes(range(0x80, 0x100))
_LETTER_TOKENS = 0.26
_SYMBOL_TOKENS = 0.5
"""Digits, punctuation and line ends."""
_NON_ASCII_BYTE_TOKENS = 0.36
"""A Chinese character has three bytes and is about one token."""
_ENCODED_EXTRA_TOKENS = 0.35
"""Added for each character of Base64 and the like, which no vocabulary has."""
_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{32,}")
_MIN_ENCODED = 32

_IMAGE_TOKENS = 85
_PIXELS_PER_TOKEN = 700

_MAX_TOOL_SETS = 64


def text_tokens(text: str) -> float:
    """Return the estimated number of tokens of `text`."""
    data = text.encode("utf-8", "surrogatepass")
    letters = len(data) - len(data.translate(None, _LETTERS))
    others = 0 if text.isascii() else len(data) - len(data.translate(None, _NON_ASCII))
    symbols = len(data) - letters - others
    long_words = [word for word in text.split() if len(word) >= _MIN_ENCODED] if len(text) >= _MIN_ENCODED else ()
    encoded = sum(len(match[0]) for word in long_words for match in _ENCODED.finditer(word))
    return (
        letters * _LETTER_TOKENS
        + symbols * _SYMBOL_TOKENS
        + others * _NON_ASCII_BYTE_TOKENS
        + encoded * _ENCODED_EXTRA_TOKENS
    )


class ContextWindow:
    """The context window of one model: its size, and the estimate of what fits into it.

    Both are corrected by what the server says. Each message of a transcript is measured once.
    """

    def __init__(self, profile: ModelProfile) -> None:
        self.tokens = profile.context_tokens
        """Size of the window, as far as it is known."""
        self._profile = profile
        self._ratio = 1.0
        self._is_calibrated = False
        self._warned_of_cut = False
        self._transcripts: WeakKeyDictionary[Transcript, tuple[int, float, float]] = WeakKeyDictionary()
        """Number of measured messages, their raw estimate, and that of the first one."""
        self._tools: dict[int, tuple[Sequence[ToolSpec], float]] = {}

    def reply_tokens(self, wanted: int | None, limit: int) -> int:
        """Return how many tokens of a window of `limit` tokens to reserve for a reply of `wanted` tokens."""
        return min(wanted or self._profile.max_tokens, int(limit * MAX_REPLY_SHARE))

    def fixed_tokens(self, transcript: Transcript, tools: Sequence[ToolSpec]) -> int:
        """Return the tokens of the system prompt and the tools."""
        return int((self._measure(transcript)[1] + self._weigh_tools(tools)) * self._ratio)

    def message_tokens(self, transcript: Transcript) -> int:
        """Return the tokens of all messages but the system prompt."""
        total, first = self._measure(transcript)
        return int((total - first) * self._ratio)

    def weigh(self, messages: Iterable[Message]) -> int:
        """Return the tokens of `messages`."""
        return int(sum(map(self._weigh, messages)) * self._ratio)

    def clip(self, text: str, tokens: int) -> str:
        """Return `text`, with a note in place of its middle if it has more than `tokens` tokens."""
        weight = text_tokens(text) * self._ratio
        return text if weight <= tokens else clip(text, int(len(text) * tokens / weight))

    def clip_results(self, plan: Plan, tokens: int) -> Plan:
        """Return the plan with results that have at most `tokens` tokens together, each clipped to the same length."""
        share = tokens // max(len(plan.steps), 1)
        steps = tuple(replace(step, result=self.clip(step.result, share)) for step in plan.steps)
        return replace(plan, steps=steps)

    def result_chars(self, text: str) -> int:
        """Return how many characters of `text`, the result of a tool call, the model may read."""
        tokens = max(self.tokens * MAX_RESULT_SHARE, MIN_RESULT_TOKENS)
        sample = text[:_SAMPLE_CHARS]
        per_character = text_tokens(sample) * self._ratio / max(len(sample), 1)
        return int(min(MAX_TEXT, tokens / max(per_character, _LETTER_TOKENS / 4)))

    def learn(self, request: ModelRequest, usage: Usage, limit: int, limit_tokens: int | None = None) -> None:
        """Learn from an accepted request: from the tokens that the server counted, and that it fits into `limit`.

        Args:
            request: The accepted request.
            usage: The tokens that the server counted.
            limit: Size that was assumed for this request.
            limit_tokens: Size that the server named when it refused a longer request, if it did. It is believed.
        """
        # A refusal without any sense must not make the window too small for every later session.
        least = 2 * self.fixed_tokens(request.transcript, request.tools)
        limit = max(limit, least, min(limit_tokens or 0, self.tokens))
        if limit < self.tokens:
            log.warning(
                "the context window of the model is smaller than configured",
                extra={"profile": self._profile.name, "tokens": limit, "configured": self._profile.context_tokens},
            )
            self.tokens = limit
        raw = self._measure(request.transcript)[0] + self._weigh_tools(request.tools)
        ratio = usage.prompt_tokens / raw
        if not _PLAUSIBLE_RATIOS[0] <= ratio <= _PLAUSIBLE_RATIOS[1]:
            return
        if self._is_calibrated and ratio < self._ratio * _CUT_RATIO:
            self._warn_of_cut(usage.prompt_tokens, int(raw * self._ratio))
            return
        self._is_calibrated = True
        if ratio < self._ratio:
            ratio = self._ratio + (ratio - self._ratio) * _RATIO_DECAY
        self._ratio = min(max(ratio, _MIN_RATIO), _MAX_RATIO)

    def _warn_of_cut(self, counted: int, expected: int) -> None:
        """Warn once that the server counts too few tokens: some servers silently cut what exceeds their window."""
        if not self._warned_of_cut:
            log.warning(
                "the model's server counted far fewer tokens than the prompt has; it may cut long prompts: "
                "check its context size and set MODEL_CONTEXT_TOKENS accordingly",
                extra={"profile": self._profile.name, "counted": counted, "expected": expected},
            )
        self._warned_of_cut = True

    def reduced(self, request: ModelRequest, limit: int, limit_tokens: int | None) -> int:
        """Return the size to assume for the window after the server refused `request` as too long for it.

        Args:
            request: The refused request.
            limit: Size that was assumed for this request.
            limit_tokens: See `ContextTooLong.limit_tokens`.
        """
        if limit_tokens is not None and limit_tokens >= MIN_WINDOW:
            limit = min(limit, limit_tokens)
        used = (
            self.fixed_tokens(request.transcript, request.tools)
            + self.message_tokens(request.transcript)
            + self.reply_tokens(request.max_tokens, limit)
        )
        return limit if used > limit else int(used * _REFUSED_SHARE)

    def _measure(self, transcript: Transcript) -> tuple[float, float]:
        count, total, first = self._transcripts.get(transcript, (0, 0.0, 0.0))
        added = [self._weigh(message) for message in transcript.since(count)]
        if added:
            first = first if count else added[0]
            total += sum(added)
            self._transcripts[transcript] = (count + len(added), total, first)
        return total, first

    def _weigh_tools(self, tools: Sequence[ToolSpec]) -> float:
        known = self._tools.get(id(tools))
        if known is not None and known[0] is tools:
            return known[1]
        weight = sum(text_tokens(f"{tool.name} {tool.description} {tool.parameters}") + _CALL_TOKENS for tool in tools)
        if len(self._tools) >= _MAX_TOOL_SETS:
            self._tools.clear()
        self._tools[id(tools)] = (tools, weight)
        return weight

    def _weigh(self, message: Message) -> float:
        match message:
            case SystemMessage() | UserMessage():
                return _MESSAGE_TOKENS + text_tokens(message.content)
            case ToolMessage():
                images = sum(map(_image_tokens, message.images)) if self._profile.vision else 0.0
                return _MESSAGE_TOKENS + text_tokens(message.content) + images
            case AssistantMessage():
                calls = sum(text_tokens(call.name + call.arguments) + _CALL_TOKENS for call in message.tool_calls)
                fields = message.provider_fields
                sent_back = fields is not None and fields.source == self._profile.identity
                extra = text_tokens(f"{fields.message}{fields.calls}") if fields is not None and sent_back else 0.0
                return _MESSAGE_TOKENS + text_tokens(message.content) + calls + extra
            case _:
                assert_never(message)


class ContextWindows:
    """The context windows of all models. What is learnt of one does not change another."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], ContextWindow] = {}

    def of(self, profile: ModelProfile) -> ContextWindow:
        """Return the window of the model with this profile."""
        key = (profile.name, profile.identity)
        if key not in self._windows:
            self._windows[key] = ContextWindow(profile)
        return self._windows[key]


def _image_tokens(image: Image) -> float:
    return _IMAGE_TOKENS + image.width * image.height / _PIXELS_PER_TOKEN
