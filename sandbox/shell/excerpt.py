"""Excerpts of output that fit a model's or a person's view."""

import re
from dataclasses import dataclass

from sandbox.shell.terminal import render

MAX_CHARACTERS = 16_000
"""Maximum number of characters of an excerpt."""
_MAX_SCREEN_BYTES = 32 * 1024
"""Maximum number of bytes to draw on the emulated screen, which is slow."""
_MOVING = re.compile(rb"\x1b(?:\[[\d;]*[ABEFHfdJLMPXS@rT]|[78M])")


@dataclass(frozen=True)
class Excerpt:
    """A part of an output. If `truncated`, `text` holds its start and its end."""

    text: str
    truncated: bool


def excerpt(parts: tuple[bytes, bytes, int], source: str, limit: int = MAX_CHARACTERS) -> Excerpt:
    """Return about `limit` characters of an output.

    Args:
        parts: The output (see `Output.read_from`).
        source: File to name where the output is cut; empty if there is none.
        limit: Maximum number of characters, apart from the note at a cut.
    """
    before, after, gap = parts
    if not gap and len(before) > 2 * _MAX_SCREEN_BYTES and _MOVING.search(before):
        gap = len(before) - 2 * _MAX_SCREEN_BYTES
        before, after = before[:_MAX_SCREEN_BYTES], before[-_MAX_SCREEN_BYTES:]
    elif gap and _MOVING.search(after):
        gap += max(0, len(after) - _MAX_SCREEN_BYTES)
        after = after[-_MAX_SCREEN_BYTES:]
    first = render(before)
    if not gap and len(first) <= limit:
        return Excerpt(first, truncated=False)
    last = render(after) if gap else first
    head, tail = first[: limit // 2], last[-(limit // 2) :]
    missing = gap + len(first) + (len(last) if gap else 0) - len(head) - len(tail)
    about = "about " if gap else ""
    where = f"; the whole output is in {source}" if source else ""
    note = f"\n[... {about}{missing} characters cut here{where} ...]\n"
    return Excerpt(f"{head}{note}{tail}", truncated=True)
