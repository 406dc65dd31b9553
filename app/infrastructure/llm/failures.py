"""Failures of model calls: whether to retry, after how long, and what to tell the user."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random
from typing import cast
from urllib.parse import urlsplit

import orjson

from app.infrastructure.llm.reply import as_object

MAX_QUOTE = 300
"""Maximum number of characters of a server's error text to show."""

_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum context|exceed_context|(prompt|input|request|conversation) (is )?too long"
    r"|too many (input )?tokens|reduce the length"
)
_UNKNOWN_MODEL = re.compile(
    r"model_not_found|(unknown|invalid|no such) model|model\b.{0,80}\b(not found|not exist|not loaded)"
)
_FILTERED = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation")
_KEY_LIKE = re.compile(r"\b(sk|key|bearer)[-_ ](?=[\w*.\-]*[\d*])[\w*.\-]{6,}", re.IGNORECASE)
"""Matches keys and masked keys such as `sk-abc***xyz`: a key prefix, then text with a digit or a star."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter. All times are in seconds."""

    retries: int = 4
    base_seconds: float = 0.5
    cap_seconds: float = 8.0
    max_retry_after: float = 60.0
    """Longest wait that a server may ask for. A longer one fails the call."""

    def delay(self, attempt: int, retry_after: float | None, rng: Random) -> float:
        """Return the wait after attempt number `attempt`, counted from 0."""
        if retry_after is not None:
            # Servers tell all refused clients the same time, so the jitter is added to it.
            return retry_after + rng.uniform(0, self.base_seconds)
        return rng.uniform(0, min(self.cap_seconds, self.base_seconds * 2**attempt))


class ModelCallError(Exception):
    """One attempt at a model call failed. `str(error)` is text for a person and never contains the key.

    Attributes:
        retry: Whether another attempt can succeed.
        retry_after: Seconds that the server asks to wait; None if it does not say.
        status: HTTP status; 0 if there is none.
        server_text: The server's error code, type, parameter and message in lower case.
    """

    def __init__(
        self, message: str, *, retry: bool, retry_after: float | None = None, status: int = 0, server_text: str = ""
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.retry_after = retry_after
        self.status = status
        self.server_text = server_text


@dataclass(frozen=True, slots=True)
class _ServerError:
    """The error object of a server. Every field may be empty."""

    message: str = ""
    code: str = ""
    kind: str = ""
    parameter: str = ""

    @property
    def text(self) -> str:
        """All fields in lower case, to search for known phrases."""
        return f"{self.code} {self.kind} {self.parameter} {self.message}".lower()


class FailureClassifier:
    """Creates the `ModelCallError` for each failure of one server, model and key."""

    def __init__(self, *, base_url: str, model: str, api_key: str) -> None:
        self._key = api_key
        parts = urlsplit(base_url)
        # User and password in the address are secrets too.
        self._base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._server = f"the model's server at {self._base}"
        self._model = model

    def from_status(self, status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> ModelCallError:
        """Classify an HTTP response with a status of 400 or more. `now`: seconds since the epoch."""
        return self._classify(status, _parse_error(body), parse_retry_after(headers, now))

    def from_stream(self, report: dict[str, object]) -> ModelCallError:
        """Classify a chunk that reports a failure in a stream that began with status 200."""
        parsed = _from_response(report)
        status = int(parsed.code) if re.fullmatch(r"[45]\d\d", parsed.code) else 0
        return self._classify(status, parsed, None)

    def unreachable(self, reason: str) -> ModelCallError:
        """Report that no connection could be made."""
        text = f"Cannot connect to {self._server} ({reason}). Check API_BASE and that the server is running."
        return ModelCallError(text, retry=True)

    def timed_out(self, seconds: float) -> ModelCallError:
        """Report that the server sent nothing for `seconds`."""
        text = f"{self._subject} timed out: it sent nothing for {seconds:g} seconds (LLM_TIMEOUT_SECONDS)."
        return ModelCallError(text, retry=True)

    def broken_off(self) -> ModelCallError:
        """Report that the connection or the stream ended before the reply was complete, or was malformed."""
        return ModelCallError(f"{self._subject} broke off in the middle of its reply.", retry=True)

    def not_an_api(self) -> ModelCallError:
        """Report a 200 whose body is not a chat completion."""
        text = f"{self._subject} does not behave like an OpenAI-compatible API. Check API_BASE (it often ends in /v1)."
        return ModelCallError(text, retry=False)

    def too_large(self) -> ModelCallError:
        """Report a reply above the size limit."""
        return ModelCallError(f"{self._subject} sent a reply that is too large.", retry=False)

    def closed(self) -> ModelCallError:
        """Report that the service is shutting down."""
        return ModelCallError("The model was not called: the service is stopping.", retry=False)

    def unusable_setting(self, name: str, reason: str) -> ModelCallError:
        """Report a setting whose value cannot be sent."""
        return ModelCallError(f"{name} cannot be used: {reason}.", retry=False)

    @property
    def _subject(self) -> str:
        return self._server[0].upper() + self._server[1:]

    def _classify(self, status: int, error: _ServerError, retry_after: float | None) -> ModelCallError:
        text = self._permanent_failure(status, error)
        retry = text is None
        if text is None:
            reason = f"HTTP {status}" if status else "an error in its reply"
            verb = "limits our requests" if status == 429 else "failed"
            text = f"{self._subject} {verb} ({reason}). Try again later.{self._quote(error)}"
        return ModelCallError(text, retry=retry, retry_after=retry_after, status=status, server_text=error.text)

    def _permanent_failure(self, status: int, error: _ServerError) -> str | None:
        """Return the text of a failure that a retry cannot fix; None for other failures."""
        text, quote = error.text, self._quote(error)
        if status == 402 or any(code in text for code in _NO_CREDIT):
            return f"The account of API_KEY has no credit left at {self._server}: add credit or use another key.{quote}"
        if status == 401:
            # The server's text often repeats parts of the key, so it is left out.
            return f"{self._subject} refused the API key (API_KEY): it is wrong, expired or for another server."
        if status == 403:
            return f"{self._subject} refused the API key (API_KEY): it may not use {self._model}.{quote}"
        if status in (0, 400, 413, 422, 500) and _TOO_LONG.search(text):
            return (
                f"The conversation is too long for the model {self._model}: use a model with a larger context "
                f"(MODEL_NAME) or start a new session.{quote}"
            )
        if status == 404 or (status in (0, 400, 422) and _UNKNOWN_MODEL.search(text)):
            return f"{self._subject} does not know the model {self._model}: check MODEL_NAME and API_BASE.{quote}"
        if status in (0, 400, 422) and any(code in text for code in _FILTERED):
            return f"{self._subject} refused this content: rephrase the request.{quote}"
        if status in (0, 408, 409, 429) or status >= 500:
            return None
        return f"{self._subject} refused the request (HTTP {status}).{quote}"

    def _quote(self, error: _ServerError) -> str:
        text = error.message
        if len(self._key) >= 4:
            text = text.replace(self._key, "[key]")
        text = " ".join(_KEY_LIKE.sub("[key]", text).partition("Traceback (most recent call last)")[0].split())
        text = "".join(char for char in text if char.isprintable())
        if len(text) > MAX_QUOTE:
            text = text[: MAX_QUOTE - 1] + "…"
        return f" The server said: {text}" if text else ""


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a server asks to wait, or None if it does not say.

    Reads `retry-after-ms`, then `Retry-After` as seconds or as an HTTP date (RFC 9110, section 10.2.3). `now` is in
    seconds since the epoch.
    """
    milliseconds = _non_negative(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1_000
    value = headers.get("retry-after")
    seconds = _non_negative(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _non_negative(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _parse_error(body: bytes) -> _ServerError:
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:4_000].decode("utf-8", "replace").strip()
        # An HTML page does not help the user.
        return _ServerError("" if text.startswith("<") else text)
    if isinstance(value, list):  # Google wraps its errors in an array
        value = next(iter(cast("list[object]", value)), None)
    return _from_response(as_object(cast("object", value)))


def _from_response(response: dict[str, object]) -> _ServerError:
    error = response.get("error")
    return _server_error(as_object(error) or {"message": error, **response})


def _server_error(error: dict[str, object]) -> _ServerError:
    message = error.get("message") or error.get("detail") or ""
    text = message if isinstance(message, str) else orjson.dumps(message).decode()
    code, kind, parameter = (str(error.get(name) or "") for name in ("code", "type", "param"))
    return _ServerError(text, code, kind, parameter)
