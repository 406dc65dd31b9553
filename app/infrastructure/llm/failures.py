"""Failures of model calls: what to tell the user, and how long to repeat a call."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from urllib.parse import unquote_plus, urlsplit

from app.domain.errors import ContextTooLong, MalformedReply, ModelFailure
from app.domain.external.llm import FailureKind
from app.infrastructure.llm.addresses import hide_addresses
from app.infrastructure.llm.failure_rules import STATUS_OF_CODE, parse_context_limit, rule_of
from app.infrastructure.llm.secret_mask import ErrorTextMask
from app.infrastructure.llm.server_error import ServerError, read_body, read_report, wait_in_headers

MAX_QUOTE = 300
"""Maximum number of characters of a server's error text to show."""

MAX_GENERATED = 8_000
"""Maximum number of characters of a malformed tool call to keep."""

_GATEWAY_STATUSES = (500, 502)
"""Statuses with which gateways report any error of the server behind them."""

FEW_RETRIES = 2
"""Maximum number of retries of failures that rarely go away, such as an unknown host."""

_KEY_OF_VARIABLE = {
    "API_KEY": "api_key_env",
    "API_BASE": "base_url",
    "MODEL_NAME": "model",
    "MAX_TOKENS": "max_tokens",
    "LLM_TIMEOUT_SECONDS": "timeout_seconds",
}
_VARIABLE = re.compile(rf"\b(?:{'|'.join(_KEY_OF_VARIABLE)})\b")


class ModelCallError(Exception):
    """One attempt at a model call failed. `str(error)` is text for a person, without the key and internal addresses."""

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind,
        waiting: str = "",
        retries: int | None = None,
        retry_after: float | None = None,
        status: int = 0,
        server: ServerError | None = None,
        log_text: str = "",
    ) -> None:
        """Create the error.

        Args:
            message: What failed and what to do.
            kind: Kind of the failure.
            waiting: Text for the user while the call waits to be repeated. Empty: the failure is final.
            retries: Maximum number of retries; None: as many as the patience allows.
            retry_after: Seconds that the server asks to wait; None if it does not say.
            status: HTTP status; 0 if there is none.
            server: What the server said.
            log_text: `message` with the addresses in it, for the log; empty if it has none.
        """
        super().__init__(message)
        self.kind: FailureKind = kind
        self.waiting = waiting
        self.retries = retries
        self.retry_after = retry_after
        self.status = status
        self.server = server or ServerError()
        self.log_text = log_text or message

    def to_failure(self, more: str = "") -> ModelFailure:
        """Return the final failure of the call. `more`: what to add to its text."""
        text = f"{self}{more}"
        if self.kind == "context":
            return ContextTooLong(text, limit_tokens=parse_context_limit(self.server.text))
        if self.kind == "malformed":
            return MalformedReply(text, generated=self.server.generated[:MAX_GENERATED])
        return ModelFailure(text)


class FailureClassifier:
    """Creates the `ModelCallError` for each failure of one server, model and key."""

    def __init__(self, *, base_url: str, model: str, api_key: str, profile: str = "") -> None:
        """Create the classifier. `profile`: name of the profile in `MODELS_CONFIG`; empty if there is no such file."""
        self._secrets = ErrorTextMask((api_key, *_secrets_in(base_url)))
        self._profile = profile
        self._base_url = base_url
        self._server = "the model's server"
        self._model = model

    def from_status(self, status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> ModelCallError:
        """Classify an HTTP response with a status of 400 or more. `now`: seconds since the epoch."""
        error = read_body(body)
        named = _named_status(error)
        # A gateway may report the refusal of a server behind it as a failure of its own.
        status = named if status in _GATEWAY_STATUSES and 400 <= named < 500 else status
        return self._classify(status, error, wait_in_headers(headers, now), now)

    def from_stream(self, report: dict[str, object], *, now: float) -> ModelCallError:
        """Classify a chunk that reports a failure in a stream that began with status 200."""
        error = read_report(report)
        return self._classify(_named_status(error), error, None, now)

    def unreachable(self, reason: str, *, retries: int | None = None) -> ModelCallError:
        """Report that no connection could be made. `retries`: see `ModelCallError`."""
        text = (
            f"{self._subject} cannot be reached ({reason}): try again later. For the operator: check API_BASE and that "
            "the server is running."
        )
        waiting = "The model's server cannot be reached; trying again"
        return ModelCallError(self._with_keys(text), kind="unreachable", waiting=waiting, retries=retries)

    def timed_out(self, seconds: float) -> ModelCallError:
        """Report that the server sent nothing for `seconds`."""
        text = f"{self._subject} timed out: it sent nothing for {seconds:g} seconds (LLM_TIMEOUT_SECONDS)."
        return ModelCallError(
            self._with_keys(text), kind="timeout", waiting="The model's server does not reply; trying again"
        )

    def broken_off(self, *, retries: int | None = None) -> ModelCallError:
        """Report that the connection or the stream ended before the reply was complete, or was malformed."""
        text = f"{self._subject} broke off in the middle of its reply."
        waiting = "The reply of the model's server broke off; trying again"
        return ModelCallError(text, kind="broken", waiting=waiting, retries=retries)

    def not_an_api(self) -> ModelCallError:
        """Report a 200 whose body is not a chat completion."""
        text = f"{self._subject} does not behave like an OpenAI-compatible API. Check API_BASE (it often ends in /v1)."
        return ModelCallError(self._with_keys(text), kind="request")

    def too_large(self) -> ModelCallError:
        """Report a reply above the size limit."""
        return ModelCallError(f"{self._subject} sent a reply that is too large.", kind="other")

    def closed(self) -> ModelCallError:
        """Report that the service is shutting down."""
        return ModelCallError("The model was not called: the service is stopping.", kind="other")

    def unusable_setting(self, name: str, reason: str) -> ModelCallError:
        """Report a setting whose value cannot be sent."""
        return ModelCallError(self._with_keys(f"{name} cannot be used: {reason}."), kind="request")

    @property
    def _subject(self) -> str:
        return self._server[0].upper() + self._server[1:]

    def _classify(self, status: int, error: ServerError, wait: float | None, now: float) -> ModelCallError:
        if wait is None:
            wait = error.retry_after if error.retry_after is not None else wait_in_headers(error.headers, now)
        rule = rule_of(status, error, has_wait=wait is not None)
        fields = {
            "Server": self._subject,
            "server": self._server,
            "model": self._model,
            "status": status,
            "reason": f" (HTTP {status})" if status else " (an error in its reply)",
        }
        headline, quote = self._with_keys(rule.headline.format_map(fields)), self._quote(error)
        return ModelCallError(
            headline + _shorten(hide_addresses(quote, self._base_url)),
            log_text=headline + quote,
            kind=rule.kind,
            waiting=rule.waiting.format_map(fields),
            retries=rule.retries,
            retry_after=wait,
            status=status,
            server=error,
        )

    def _with_keys(self, text: str) -> str:
        """Replace the names of variables by the profile's keys in `MODELS_CONFIG`, if there is such a file."""
        if not self._profile:
            return text
        return _VARIABLE.sub(lambda found: f"{_KEY_OF_VARIABLE[found[0]]} of the profile {self._profile}", text)

    def _quote(self, error: ServerError) -> str:
        text = " ".join(self._secrets.mask(error.message).split())
        text = "".join(char for char in text if char.isprintable())
        return f" The server said: {text}" if text else ""


def _shorten(quote: str) -> str:
    """Return a quote with at most `MAX_QUOTE` characters of the server's text."""
    limit = MAX_QUOTE + len(" The server said: ")
    return quote if len(quote) <= limit else quote[: limit - 1] + "…"


def _named_status(error: ServerError) -> int:
    """Return the HTTP status that the body of an error names or implies; 0 if none."""
    codes = (STATUS_OF_CODE.get(code.lower(), 0) for code in error.codes)
    return error.status or next(filter(None, codes), 0)


def _secrets_in(base_url: str) -> list[str]:
    """Return the password of an address and the values of its query, as they are in it and decoded."""
    parts = urlsplit(base_url)
    pairs = (pair.partition("=") for pair in parts.query.split("&"))
    values = [value for name, _, value in pairs if name != "api-version"]
    values.append(parts.password or "")
    return values + [unquote_plus(value) for value in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits of repeating a call that fails, with exponential backoff and jitter. All times are in seconds."""

    patience_seconds: float = 120.0
    """Maximum time from the first failure to the last attempt."""
    broken_replies: int = 4
    """Maximum number of retries of replies that broke off in their middle."""
    base_seconds: float = 0.5
    cap_seconds: float = 15.0

    def delay(self, attempt: int, retry_after: float | None, rng: Random) -> float:
        """Return the wait after attempt number `attempt`, counted from 0."""
        backoff = min(self.cap_seconds, self.base_seconds * 2 ** min(attempt, 20))
        if retry_after is not None:
            # Servers tell all refused clients the same time, so the jitter is added to it.
            return retry_after + rng.uniform(0, backoff)
        return backoff / 2 + rng.uniform(0, backoff / 2)


_MIN_LEFT_SECONDS = 0.001
"""Time below which another attempt is pointless: a clock may not even advance by it."""


class Patience:
    """Decides after each failed attempt at one call whether and when to try again."""

    def __init__(self, policy: RetryPolicy, rng: Random, now: Callable[[], float]) -> None:
        self._policy = policy
        self._rng = rng
        self._now = now
        self._since: float | None = None
        self._attempts = 0
        self._failures: Counter[FailureKind] = Counter()
        self._broken_replies = 0

    def delay_after(self, failure: ModelCallError, *, in_reply: bool) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            failure: How the last attempt failed.
            in_reply: Whether a part of the reply had arrived. The server works then, so the time starts anew, but
                the number of such attempts is limited.

        Raises:
            ModelFailure: Another attempt is pointless.
        """
        now = self._now()
        if self._since is None or in_reply:
            self._since = now
        self._attempts += 1
        self._failures[failure.kind] += 1
        self._broken_replies += in_reply
        if not failure.waiting:
            raise failure.to_failure() from None
        left = self._policy.patience_seconds - (now - self._since)
        wait = failure.retry_after
        if wait is not None and wait > left:
            raise failure.to_failure(f" It asks to wait {_duration(wait)}, longer than LLM_RETRY_SECONDS.") from None
        is_last = failure.retries is not None and self._failures[failure.kind] > failure.retries
        if left < _MIN_LEFT_SECONDS or is_last or self._broken_replies > self._policy.broken_replies:
            raise failure.to_failure(f" (Tried {self._attempts} times.)" if self._attempts > 1 else "") from None
        delay = self._policy.delay(self._attempts - 1, wait, self._rng)
        return min(delay, left) if wait is None else delay


def _duration(seconds: float) -> str:
    """Return a duration for a person, with its seconds where these are few enough to compare."""
    if seconds < 7_200:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3_600:.0f} hours ({seconds:.0f} seconds)"
