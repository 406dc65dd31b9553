"""Probe of the context window: a word at the beginning of conversations of growing length."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from app.domain.errors import ContextTooLong
from app.domain.external.llm import FailureKind
from app.domain.models.tool import JsonObject
from app.infrastructure.llm.check.client import Observation, OutOfTime, ProbeClient
from app.infrastructure.llm.check.findings import Finding, reason_of
from app.infrastructure.llm.failures import ModelCallError

MAX_TOKENS = 200_000
"""Longest prompt that is sent, in tokens. A longer one costs too much for a check."""

MIN_TOKENS = 6_000
"""Smallest window in which the agent can work: its first request and one reply take 4,000 tokens."""

FIRST_TOKENS = 1_000
"""Smallest prompt that is sent, in tokens."""

REPLY_TOKENS = 1_000
"""Maximum token limit of a reply. It leaves room for thoughts."""

GROWTH = 4
"""How many times longer each prompt is than the one before."""

BISECTIONS = 2
"""Maximum number of prompts between the longest that worked and the shortest that did not."""

COUNTED_SHARE = 0.75
"""Share of a prompt's tokens that the server must have counted if it did not cut the prompt."""

FORGOTTEN_SHARE = 0.95
"""The same share when the model has forgotten the word."""

CHARS_PER_TOKEN = 3.5
"""Estimate until the server has counted a prompt."""

MESSAGE_CHARS = 8_000
"""Length of each message between the first and the last, in characters. The messages are the same in all prompts."""

WORD = "otter-7359"
"""The word to remember."""

_RAISE = "Raise the server's context (Ollama: OLLAMA_CONTEXT_LENGTH, llama.cpp: --ctx-size, vLLM: --max-model-len)."
_REFUSALS: tuple[FailureKind, ...] = ("context", "request", "other")
"""Failures that may be due to the length of the prompt."""

_TOO_SLOW = "it takes too long for this check"
_WAYS = {
    "cut": "silently cuts longer prompts",
    "forgotten": "does not know the first word of a longer prompt",
    "refused": "refuses longer prompts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """Outcome of sending a prompt of `tokens`."""

    tokens: int
    outcome: Literal["read", "accepted", "cut", "forgotten", "refused", "untested"]
    """`accepted`: it is not known whether the model read the whole prompt, because it never repeats the word."""
    reason: str = ""
    hint: int = 0
    """Length of a prompt that may work; 0 if there is no sign of it."""
    window: int = 0
    """Size of the window that the server named; 0 if it named none."""

    @property
    def works(self) -> bool:
        return self.outcome in ("read", "accepted")


class ContextProbe:
    """Finds the longest prompt that the model reads whole, up to the window that its profile names."""

    def __init__(self, client: ProbeClient) -> None:
        self._client = client
        self._window = client.profile.context_tokens
        self._reply_tokens = min(REPLY_TOKENS, self._window // 8)
        self._chars_per_token = CHARS_PER_TOKEN
        self._seconds_per_token = 0.0
        self._repeats_word = False

    async def run(self) -> Finding:
        """Return the finding."""
        best: _Attempt | None = None
        failed: _Attempt | None = None
        for tokens in self._lengths():
            attempt = await self._try(tokens)
            if not attempt.works:
                failed = attempt
                break
            best = attempt
        if best is not None and failed is not None:
            best = await self._narrow(best, failed)
        return self._finding(best, failed)

    def _lengths(self) -> Iterator[int]:
        target = min(self._window - self._reply_tokens, MAX_TOKENS)
        steps = max(0, math.floor(math.log(target / FIRST_TOKENS, GROWTH))) if target > FIRST_TOKENS else 0
        return (target // GROWTH**step for step in range(steps, -1, -1))

    async def _try(self, tokens: int) -> _Attempt:
        """Send a prompt of `tokens` and return what happened; a second one if the model only forgot the word."""
        if self._seconds_per_token * tokens > self._client.remaining:
            return _Attempt(tokens=tokens, outcome="untested")
        attempt = await self._send(tokens)
        return await self._send(tokens) if attempt.outcome == "forgotten" else attempt

    async def _send(self, tokens: int) -> _Attempt:
        messages = _conversation(int(tokens * self._chars_per_token))
        start = self._client.remaining
        try:
            seen = await self._client.ask(messages, max_tokens=self._reply_tokens)
        except (TimeoutError, OutOfTime):
            return _Attempt(tokens=tokens, outcome="untested")
        except ModelCallError as failure:
            if failure.kind not in _REFUSALS:
                return _Attempt(tokens=tokens, outcome="untested", reason=reason_of(failure))
            named = failure.to_failure()
            window = (named.limit_tokens or 0) if isinstance(named, ContextTooLong) else 0
            hint = window - self._reply_tokens
            return _Attempt(tokens=tokens, outcome="refused", reason=reason_of(failure), hint=hint, window=window)
        self._seconds_per_token = max(start - self._client.remaining, 0) / tokens
        return self._judge(seen, tokens)

    def _judge(self, seen: Observation, tokens: int) -> _Attempt:
        counted = seen.reply.usage.prompt_tokens
        is_known = WORD in seen.raw_text
        # Without the word, a small difference is enough: the first prompts have shown how this server counts.
        expected = tokens * (FORGOTTEN_SHARE if self._repeats_word and not is_known else COUNTED_SHARE)
        if 0 < counted < expected:
            return _Attempt(tokens=tokens, outcome="cut", hint=counted)
        if counted:
            self._chars_per_token *= tokens / counted
        if is_known:
            self._repeats_word = True
            return _Attempt(tokens=tokens, outcome="read")
        return _Attempt(tokens=tokens, outcome="forgotten" if self._repeats_word else "accepted")

    async def _narrow(self, best: _Attempt, failed: _Attempt) -> _Attempt:
        """Return the longest prompt that worked between `best` and `failed`."""
        low: _Attempt = best
        high, hint = failed.tokens, failed.hint
        for _ in range(BISECTIONS):
            is_hinted = low.tokens < hint < high
            middle = hint - hint // 50 if is_hinted else math.isqrt(low.tokens * high)
            if failed.outcome == "untested" or high < low.tokens * 1.15 or middle <= low.tokens:
                break
            attempt = await self._try(middle)
            if attempt.outcome == "untested":
                break
            if attempt.works:
                low = replace(attempt, window=failed.window if is_hinted else 0)
                if is_hinted:
                    break
            else:
                high, hint = attempt.tokens, attempt.hint
        return low

    def _finding(self, best: _Attempt | None, failed: _Attempt | None) -> Finding:
        if best is None:
            return self._nothing_worked(failed)
        known = "the model knows its first word" if self._repeats_word else "accepted"
        tested = f"{best.tokens:,} tokens tested, {known}"
        if failed is None:
            return self._whole(tested)
        if failed.outcome == "untested":
            text = f"{tested}; a longer prompt was not: {failed.reason or _TOO_SLOW}"
            limit = f"the context was tested only up to {best.tokens:,} tokens"
            return Finding(probe="context", level="warning", text=text, limit=limit)
        # A window that the server named was tested with room for a reply; of others the room is not known.
        window = best.window or best.tokens // 100 * 100
        reason = f": {failed.reason}" if failed.reason else ""
        is_too_small = window < MIN_TOKENS
        return Finding(
            probe="context",
            level="problem" if is_too_small else "warning",
            text=f"{tested}; the server {_WAYS[failed.outcome]}{reason}",
            advice=f"{_RAISE} Otherwise set context_tokens = {window} (MODEL_CONTEXT_TOKENS).",
            limit=f"the context is {window:,} tokens, not {self._window:,}"
            + (f"; Anker needs {MIN_TOKENS:,}" if is_too_small else ""),
            facts={"context_tokens": window},
        )

    def _nothing_worked(self, failed: _Attempt | None) -> Finding:
        assert failed is not None  # noqa: S101 - for the type checker: the first prompt worked or failed
        tokens = failed.tokens
        if failed.outcome == "untested":
            text = f"not tested with {tokens:,} tokens: {failed.reason or _TOO_SLOW}"
            return Finding(probe="context", level="warning", text=text, limit="the context was not tested")
        return Finding(
            probe="context",
            level="problem",
            text=f"the server {_WAYS[failed.outcome]} even at {tokens:,} tokens: {failed.reason}",
            advice=_RAISE,
            limit=f"the context is less than {tokens:,} tokens; Anker needs {MIN_TOKENS:,}",
        )

    def _whole(self, tested: str) -> Finding:
        facts = {"context_tokens": self._window}
        if self._window < MIN_TOKENS:
            return Finding(
                probe="context",
                level="problem",
                text=f"{tested}, which is the whole window of the profile",
                advice="Raise the server's context and context_tokens (MODEL_CONTEXT_TOKENS).",
                limit=f"the context is {self._window:,} tokens; Anker needs {MIN_TOKENS:,}",
                facts=facts,
            )
        return Finding(probe="context", level="ok", text=tested, facts=facts)


def _conversation(chars: int) -> list[JsonObject]:
    """Return a conversation of about `chars` characters that begins with the word and ends with a question for it."""
    messages: list[JsonObject] = [
        {"role": "system", "content": "You keep the log of a lighthouse."},
        {"role": "user", "content": f"The code word is {WORD}. Remember it."},
    ]
    entry, rest = 0, chars
    while rest > 0:
        lines: list[str] = []
        length = 0
        while length < min(MESSAGE_CHARS, rest):
            entry += 1
            lines.append(f"Entry {entry}: nothing of note happened on that day.")
            length += len(lines[-1]) + 1
        rest -= length
        messages.append({"role": "assistant", "content": "Noted."})
        messages.append({"role": "user", "content": "\n".join(lines)})
    messages.append({"role": "assistant", "content": "Noted."})
    messages.append({"role": "user", "content": "What is the code word? Reply with it and nothing else."})
    return messages
