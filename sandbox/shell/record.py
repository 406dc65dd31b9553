"""The record of one command on a shell's console."""

import asyncio
from dataclasses import dataclass, field

from sandbox.shell.excerpt import MAX_CHARACTERS, Excerpt, excerpt
from sandbox.shell.output import Output
from sandbox.shell.terminal import unfinished

OLD_CHARACTERS = 4_000
"""Maximum number of characters to keep of an older record."""
_INLINE_BYTES = 16 * 1024
"""Maximum number of bytes to render on the event loop. A thread renders more."""


@dataclass
class Record:
    """One command. `number` counts within its shell; `returncode` is None while it runs."""

    number: int
    ps1: str
    command: str
    output: Output
    started: bool = False
    returncode: int | None = None
    note: str = ""
    """What a user of the shell must know beside the exit code; empty if there is nothing."""
    loop_exits: int = 0
    """Number of times that bash left its command loop during this command."""
    reported_bytes: int = 0
    """Position in the output up to which it was reported."""
    _shown: Excerpt | None = field(default=None, init=False)
    _shown_at: int = field(default=-1, init=False)

    @property
    def running(self) -> bool:
        """Whether the command is running."""
        return self.returncode is None

    async def full_output(self) -> Excerpt:
        """Return the output so far."""
        if self._shown is None or self._shown_at != self.output.total:
            position = self.output.total
            self._shown = await self._excerpt(self.output.read_from(0), MAX_CHARACTERS)
            self._shown_at = position
        return self._shown

    async def new_output(self) -> Excerpt:
        """Return the output since the last report and mark it as reported."""
        before, after, gap = self.output.read_from(self.reported_bytes)
        held = unfinished(after or before) if self.running else 0
        if held and gap:
            after = after[:-held]
        elif held:
            before = before[:-held]
        self.reported_bytes = self.output.total - held
        return await self._excerpt((before, after, gap), MAX_CHARACTERS)

    async def compact(self) -> None:
        """Keep only a short rendered form, because a newer record follows."""
        self._shown = await self._excerpt(self.output.read_from(0), OLD_CHARACTERS)
        self.output.release()
        self._shown_at = self.output.total

    async def _excerpt(self, parts: tuple[bytes, bytes, int], limit: int) -> Excerpt:
        source = self.output.file
        if len(parts[0]) + len(parts[1]) <= _INLINE_BYTES:
            return excerpt(parts, source, limit)
        return await asyncio.to_thread(excerpt, parts, source, limit)
