"""What a failed call means: whether to ask again, and what to tell the person who can do something about it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import orjson

from app.infrastructure.llm.assembly import as_object
from app.infrastructure.llm.retry import parse_retry_after

MAX_SAID = 300
"""Characters of a server's own words that are passed on."""

_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum context|exceed_context|(prompt|input|request|conversation) (is )?too long"
    r"|too many (input )?tokens|reduce the length"
)
_NO_MODEL = re.compile(
    r"model_not_found|(unknown|invalid|no such) model|model\b.{0,80}\b(not found|not exist|not loaded)"
)
_FILTERED = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation")
_KEY_LIKE = re.compile(r"\b(sk|key|bearer)[-_ ](?=[\w*.\-]*[\d*])[\w*.\-]{6,}", re.IGNORECASE)
"""Parts of a key too, as `sk-abc***xyz`: all that begins as keys do and holds a digit or a star."""


class CallFailed(Exception):
    """One attempt failed. `str(failure)` is a sentence or two for a person, without the key.

    `retry_after` is in seconds, None when the server does not say; `said` is what the server wrote, in lower case,
    for finding out which parameter it dislikes.
    """

    def __init__(
        self, message: str, *, retry: bool, retry_after: float | None = None, status: int = 0, said: str = ""
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.retry_after = retry_after
        self.status = status
        self.said = said


@dataclass(frozen=True, slots=True)
class _Said:
    """A server's error object; all parts may be empty."""

    message: str = ""
    code: str = ""
    kind: str = ""
    parameter: str = ""

    @property
    def words(self) -> str:
        """All of it, in lower case, for looking words up."""
        return f"{self.code} {self.kind} {self.parameter} {self.message}".lower()


class Failures:
    """Makes a CallFailed out of each thing that can go wrong with one server, model and key."""

    def __init__(self, *, base_url: str, model: str, api_key: str) -> None:
        self._key = api_key
        parts = urlsplit(base_url)
        # A user and password in the address are secrets too.
        self._base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._server = f"the model's server at {self._base}"
        self._model = model

    def from_status(self, status: int, headers: Mapping[str, str], body: bytes, now: float) -> CallFailed:
        """An HTTP answer of 400 or more; `now` in seconds since the epoch."""
        return self._classify(status, _parse(body), parse_retry_after(headers, now))

    def in_stream(self, error: dict[str, object]) -> CallFailed:
        """An `error` object inside an answer that had begun with 200."""
        said = _said_in(error)
        status = int(said.code) if re.fullmatch(r"[45]\d\d", said.code) else 0
        return self._classify(status, said, None)

    def unreachable(self, reason: str) -> CallFailed:
        """No connection could be made."""
        text = f"Cannot connect to {self._server} ({reason}). Is API_BASE right, and is the server running?"
        return CallFailed(text, retry=True)

    def silent(self, seconds: float) -> CallFailed:
        """Nothing came for `seconds`."""
        text = f"{self._cap} timed out: it sent nothing for {seconds:g} seconds (LLM_TIMEOUT_SECONDS)."
        return CallFailed(text, retry=True)

    def broken_off(self) -> CallFailed:
        """The connection or the stream ended before the answer was complete, or made no sense."""
        return CallFailed(f"{self._cap} broke off in the middle of its answer.", retry=True)

    def not_an_api(self) -> CallFailed:
        """A 200 whose body is not what `/chat/completions` answers."""
        text = f"{self._cap} did not answer as an OpenAI-compatible API does. Is API_BASE right (often it ends in /v1)?"
        return CallFailed(text, retry=False)

    def too_large(self) -> CallFailed:
        """An answer past every bound."""
        return CallFailed(f"{self._cap} sent an answer that is too large.", retry=False)

    def closed(self) -> CallFailed:
        """The service is shutting down."""
        return CallFailed("The model is not asked any more: the service is stopping.", retry=False)

    def unusable(self, name: str, reason: str) -> CallFailed:
        """A setting that cannot even be sent."""
        return CallFailed(f"{name} cannot be used: {reason}.", retry=False)

    @property
    def _cap(self) -> str:
        return self._server[0].upper() + self._server[1:]

    def _classify(self, status: int, said: _Said, retry_after: float | None) -> CallFailed:
        text = self._final(status, said)
        retry = text is None
        if text is None:
            reason = f"HTTP {status}" if status else "an error in its answer"
            doing = "is limiting our requests" if status == 429 else "failed"
            text = f"{self._cap} {doing} ({reason}). Try again later.{self._quote(said)}"
        return CallFailed(text, retry=retry, retry_after=retry_after, status=status, said=said.words)

    def _final(self, status: int, said: _Said) -> str | None:
        """The text of a failure that asking again cannot mend; None for the others."""
        words, quote = said.words, self._quote(said)
        if status == 402 or any(code in words for code in _NO_CREDIT):
            return f"The account behind API_KEY has no credit left at {self._server}: top it up, or use another.{quote}"
        if status == 401:
            # The server's own words are left out: they tend to repeat parts of the key.
            return f"{self._cap} refused the API key (API_KEY): it is wrong, expired or for another server."
        if status == 403:
            return f"{self._cap} refused the API key (API_KEY): it may not use {self._model} here.{quote}"
        if status in (0, 400, 413, 422, 500) and _TOO_LONG.search(words):
            return (
                f"The conversation has become too long for the model {self._model}: use a model with a larger context "
                f"(MODEL_NAME), set MODEL_CONTEXT_TOKENS to what it has, or begin a new session.{quote}"
            )
        if status == 404 or (status in (0, 400, 422) and _NO_MODEL.search(words)):
            return f"{self._cap} does not know the model {self._model}: check MODEL_NAME and API_BASE.{quote}"
        if status in (0, 400, 422) and any(code in words for code in _FILTERED):
            return f"{self._cap} refused this content: put the request in other words.{quote}"
        if status in (0, 408, 409, 429) or status >= 500:
            return None
        return f"{self._cap} refused the request (HTTP {status}).{quote}"

    def _quote(self, said: _Said) -> str:
        text = said.message
        if len(self._key) >= 4:
            text = text.replace(self._key, "[key]")
        text = " ".join(_KEY_LIKE.sub("[key]", text).partition("Traceback (most recent call last)")[0].split())
        text = "".join(char for char in text if char.isprintable())
        if len(text) > MAX_SAID:
            text = text[: MAX_SAID - 1] + "…"
        return f" The server said: {text}" if text else ""


def _parse(body: bytes) -> _Said:
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:4_000].decode("utf-8", "replace").strip()
        # A page made for a browser tells nobody anything.
        return _Said("" if text.startswith("<") else text)
    if isinstance(value, list):  # Google wraps its errors in an array
        value = next(iter(cast("list[object]", value)), None)
    answer = as_object(cast("object", value))
    error = answer.get("error")
    return _said_in(as_object(error) or {"message": error, **answer})


def _said_in(error: dict[str, object]) -> _Said:
    message = error.get("message") or error.get("detail") or ""
    text = message if isinstance(message, str) else orjson.dumps(message).decode()
    code, kind, parameter = (str(error.get(name) or "") for name in ("code", "type", "param"))
    return _Said(text, code, kind, parameter)
