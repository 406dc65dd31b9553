"""What a shell's console remembers of one command."""

import asyncio
from dataclasses import dataclass, field

from sandbox.shell.excerpt import SHOWN_CHARACTERS, Excerpt, excerpt
from sandbox.shell.output import Output
from sandbox.shell.terminal import unfinished

OLD_CHARACTERS = 4_000
_AT_ONCE = 16 * 1024
"""Bytes that are rendered on the event loop; more goes to a thread."""


@dataclass
class Record:
    """One command: `number` within its shell, prompt, text, output; `returncode` is None while it runs."""

    number: int
    ps1: str
    command: str
    output: Output
    begun: bool = False
    returncode: int | None = None
    fallen: int = 0
    """How often bash fell out of its command loop since."""
    reported: int = 0
    """The position in the output up to which somebody was told."""
    _shown: Excerpt | None = field(default=None, init=False)
    _shown_at: int = field(default=-1, init=False)

    @property
    def running(self) -> bool:
        """Whether the command has not ended."""
        return self.returncode is None

    async def all(self) -> Excerpt:
        """The output so far."""
        if self._shown is None or self._shown_at != self.output.total:
            position = self.output.total
            self._shown = await self._excerpt(self.output.since(0), SHOWN_CHARACTERS)
            self._shown_at = position
        return self._shown

    async def news(self) -> Excerpt:
        """The output that came since it was last reported, and marks it as reported."""
        before, after, gap = self.output.since(self.reported)
        held = unfinished(after or before) if self.running else 0
        if held and gap:
            after = after[:-held]
        elif held:
            before = before[:-held]
        self.reported = self.output.total - held
        return await self._excerpt((before, after, gap), SHOWN_CHARACTERS)

    async def settle(self) -> None:
        """Keeps only a short rendered form; for a record that a newer one follows."""
        self._shown = await self._excerpt(self.output.since(0), OLD_CHARACTERS)
        self.output.forget()
        self._shown_at = self.output.total

    async def _excerpt(self, parts: tuple[bytes, bytes, int], limit: int) -> Excerpt:
        source = str(self.output.path)
        if len(parts[0]) + len(parts[1]) <= _AT_ONCE:
            return excerpt(parts, source, limit)
        return await asyncio.to_thread(excerpt, parts, source, limit)
