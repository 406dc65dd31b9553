"""When to ask again, and after how long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import SystemRandom
from typing import Protocol


class Uniform(Protocol):
    """A source of chance, such as `random.Random`."""

    def uniform(self, a: float, b: float) -> float:
        """A number between `a` and `b`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter; all times in seconds."""

    retries: int = 4
    base_seconds: float = 0.5
    cap_seconds: float = 8.0
    longest_retry_after: float = 60.0
    """A server that wants us to wait longer is taken to have failed."""

    def delay(self, attempt: int, retry_after: float | None, rng: Uniform) -> float:
        """How long to wait after the attempt with this number (the first is 0)."""
        if retry_after is not None:
            # The jitter comes on top: all who were sent away at the same moment are told the same time.
            return retry_after + rng.uniform(0, self.base_seconds)
        return rng.uniform(0, min(self.cap_seconds, self.base_seconds * 2**attempt))


def system_rng() -> Uniform:
    """The chance that is used outside tests."""
    return SystemRandom()


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a server asks us to wait, from `retry-after-ms` or `Retry-After` (seconds, or an HTTP date).

    `now` is in seconds since the epoch. None when neither header can be read.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1_000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
