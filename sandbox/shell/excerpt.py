"""As much of an output as a model or a person should be given at once."""

import re
from dataclasses import dataclass

from sandbox.shell.terminal import render

SHOWN_CHARACTERS = 16_000
_COSTLY = 32 * 1024
"""Bytes that are drawn on an emulated screen at once; it is slow."""
_MOVING = re.compile(rb"\x1b(?:\[[\d;]*[ABEFHfdJLMPXS@rT]|[78M])")


@dataclass(frozen=True)
class Excerpt:
    """`text` holds the start and the end of the output when `truncated`."""

    text: str
    truncated: bool


def excerpt(parts: tuple[bytes, bytes, int], source: str, limit: int = SHOWN_CHARACTERS) -> Excerpt:
    """At most about `limit` characters of an output (see `Output.since`); the note on a cut names `source`."""
    before, after, gap = parts
    if not gap and len(before) > 2 * _COSTLY and _MOVING.search(before):
        gap = len(before) - 2 * _COSTLY
        before, after = before[:_COSTLY], before[-_COSTLY:]
    elif gap and _MOVING.search(after):
        gap += max(0, len(after) - _COSTLY)
        after = after[-_COSTLY:]
    first = render(before)
    if not gap and len(first) <= limit:
        return Excerpt(first, truncated=False)
    last = render(after) if gap else first
    head, tail = first[: limit // 2], last[-(limit // 2) :]
    missing = gap + len(first) + (len(last) if gap else 0) - len(head) - len(tail)
    about = "about " if gap else ""
    note = f"\n[... {about}{missing} characters cut here; the whole output is in {source} ...]\n"
    return Excerpt(f"{head}{note}{tail}", truncated=True)
