"""Detection of circles: turns of the model that repeat without any new result."""

import json
import re
from collections.abc import Sequence
from hashlib import blake2b

from app.domain.models.tool import JsonObject, ToolResult

TOLD_AT = 3
"""Number of repetitions after which the model is told."""

FAILED_AT = 6
"""Number of repetitions after which the step fails."""

MAX_PERIOD = 4
"""Maximum number of turns that are recognised as repeating together."""

REMEMBERED_TURNS = MAX_PERIOD * FAILED_AT
"""Number of newest turns of a step that are kept to recognise a circle."""

TEXT_TURN = "text"
"""Fingerprint of every turn without a call: such a turn does nothing, whatever it says."""

_MAX_TEXT_TURNS = 10
"""Number of turns without a call, among the remembered ones, at which the step fails."""

_NOT_LETTERS = re.compile(r"[\W\d_]+")


def fingerprint(calls: Sequence[tuple[str, JsonObject | str, ToolResult]]) -> str:
    """Return a short name of a turn: its calls (function, arguments, result), equal for turns that did the same.

    A failed call is the same as one that differs in digits, spaces and punctuation only: an attempt number or another
    spelling of a path is no new attempt. A successful call is the same only if all of it is.
    """
    digest = blake2b(digest_size=8)
    for name, arguments, result in calls:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, sort_keys=True)
        parts = (text, result.text)
        if result.failed:
            parts = tuple(_NOT_LETTERS.sub("", part).lower() for part in parts)
        digest.update("\0".join((name, *parts, "")).encode("utf-8", "replace"))
    return digest.hexdigest()


def repetitions(turns: Sequence[str]) -> int:
    """Return how often the newest turns, up to `MAX_PERIOD` of them, were repeated in a row; 1 if they are new."""
    if turns.count(TEXT_TURN) >= _MAX_TEXT_TURNS:
        return FAILED_AT
    return max((_repetitions(turns, period) for period in range(1, MAX_PERIOD + 1)), default=1)


def _repetitions(turns: Sequence[str], period: int) -> int:
    block, count, end = turns[-period:], 1, len(turns) - period
    while end >= period and turns[end - period : end] == block:
        count, end = count + 1, end - period
    return count
