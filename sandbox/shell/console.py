"""The console of a shell: its last commands with their outputs, bounded in memory and on disk."""

import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from sandbox.identity import Identity
from sandbox.shell.excerpt import MAX_CHARACTERS
from sandbox.shell.output import FILE_BYTES, Output, RunFolder
from sandbox.shell.record import Record

MAX_RECORDS = 100
"""Maximum number of records per shell."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""Maximum total size of the output files of a shell, in bytes."""


class Console:
    """Records in order. Only the newest can still grow. Output files are in `folder`, named after the shell.

    The files belong to the agent, who may remove them or the folder.
    """

    def __init__(self, folder: RunFolder, name: str, agent: Identity) -> None:
        self._folder = folder
        self._agent = agent
        self._name = name.replace(":", "_")
        self._records: deque[Record] = deque()
        self._next = 1

    @property
    def newest(self) -> Record | None:
        """The record that receives output."""
        return self._records[-1] if self._records else None

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records, oldest first."""
        return iter(tuple(self._records))

    async def start_record(self, ps1: str, command: str) -> Record:
        """Add a record with a new output file."""
        if self.newest is not None:
            await self.newest.compact()
        output = Output(self._folder.path / f"{self._name}-{self._next}.log")
        with self._agent.acting():
            with suppress(OSError):
                self._folder.make()
            output.open()
        record = Record(self._next, ps1, command, output)
        self._next += 1
        self._records.append(record)
        self._forget_old()
        return record

    def discard_newest(self) -> None:
        """Remove the newest record, whose command never started."""
        if self._records:
            self._drop(self._records.pop())

    async def text(self) -> str:
        """Return prompts, commands and outputs as on a screen, limited to the newest 16,000 characters."""
        parts: list[str] = []
        size = 0
        for record in reversed(tuple(self._records)):
            shown = (await record.full_output()).text
            part = f"{record.ps1} {record.command}\n{shown}"
            parts.append(part if part.endswith("\n") else f"{part}\n")
            size += len(part)
            if size > MAX_CHARACTERS:
                break
        whole = "".join(reversed(parts))
        return whole if len(whole) <= MAX_CHARACTERS else f"[... older output cut ...]\n{whole[-MAX_CHARACTERS:]}"

    async def rows(self) -> list[dict[str, str]]:
        """Return `{"ps1", "command", "output"}` of each record, oldest first."""
        return [await record_data(record) for record in tuple(self._records)]

    def clear(self) -> None:
        """Close and remove all output files."""
        while self._records:
            self._drop(self._records.popleft())

    def _forget_old(self) -> None:
        kept = sum(min(record.output.total, FILE_BYTES) for record in self._records)
        while len(self._records) > 1 and (len(self._records) > MAX_RECORDS or kept > MAX_FILE_BYTES):
            oldest = self._records.popleft()
            kept -= min(oldest.output.total, FILE_BYTES)
            self._drop(oldest)

    def _drop(self, record: Record) -> None:
        record.output.close()
        with self._agent.acting(), suppress(OSError):
            os.unlink(record.output.path)


async def record_data(record: Record) -> dict[str, str]:
    """Return one record as `{"ps1", "command", "output"}`."""
    return {"ps1": record.ps1, "command": record.command, "output": (await record.full_output()).text}
