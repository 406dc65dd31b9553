"""Limits of what one owner may use."""

from dataclasses import dataclass

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerLimits:
    """The limits of each owner. 0 means no limit."""

    sessions: int = 0
    """Maximum number of sessions that exist."""
    runs: int = 0
    """Maximum number of sessions with a run."""
    streams: int = 0
    """Maximum number of open streams and desktop viewers."""
    tokens_per_day: int = 0
    """Maximum number of tokens of all runs in a day (UTC), prompts and replies together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """The limits of what happens in a time, for each owner or client address. 0 means no limit."""

    requests_per_second: int = 0
    login_failures_per_minute: int = 0
    upload_bytes_per_day: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """At most `amount` of something in a window of `seconds` seconds."""

    name: str
    amount: int
    seconds: int


def day_of(timestamp: int) -> int:
    """Return the number of the day of a time in seconds since the epoch, counted from the epoch, UTC."""
    return timestamp // SECONDS_PER_DAY
