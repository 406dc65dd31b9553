"""The console of a shell: its last commands with their outputs, bounded in memory and on disk."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from sandbox.shell.excerpt import SHOWN_CHARACTERS
from sandbox.shell.output import FILE_BYTES, Output
from sandbox.shell.record import Record

MOST_RECORDS = 100
MOST_FILE_BYTES = 256 * 1024 * 1024


class Console:
    """Records in order; only the newest can still grow. Output files are in `folder`, named after the shell."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name.replace(":", "_")
        self._records: deque[Record] = deque()
        self._next = 1

    @property
    def newest(self) -> Record | None:
        """The record that output goes to."""
        return self._records[-1] if self._records else None

    def __iter__(self) -> Iterator[Record]:
        """Oldest first."""
        return iter(tuple(self._records))

    async def begin(self, ps1: str, command: str) -> Record:
        """A new record, with its output file made; raises OSError."""
        if self.newest is not None:
            await self.newest.settle()
        output = Output(self._folder / f"{self._name}-{self._next}.log")
        output.open()
        record = Record(self._next, ps1, command, output)
        self._next += 1
        self._records.append(record)
        self._forget_old()
        return record

    def withdraw(self) -> None:
        """Takes back the newest record: its command never began."""
        if self._records:
            self._drop(self._records.pop())

    async def text(self) -> str:
        """Prompts, commands and outputs as on a screen; the newest 16,000 characters."""
        parts: list[str] = []
        size = 0
        for record in reversed(tuple(self._records)):
            shown = (await record.all()).text
            part = f"{record.ps1} {record.command}\n{shown}"
            parts.append(part if part.endswith("\n") else f"{part}\n")
            size += len(part)
            if size > SHOWN_CHARACTERS:
                break
        whole = "".join(reversed(parts))
        return whole if len(whole) <= SHOWN_CHARACTERS else f"[... older output cut ...]\n{whole[-SHOWN_CHARACTERS:]}"

    async def rows(self) -> list[dict[str, str]]:
        """`{"ps1", "command", "output"}` of each record, oldest first."""
        return [await row(record) for record in tuple(self._records)]

    def clear(self) -> None:
        """Closes and removes all output files."""
        while self._records:
            self._drop(self._records.popleft())

    def _forget_old(self) -> None:
        kept = sum(min(record.output.total, FILE_BYTES) for record in self._records)
        while len(self._records) > 1 and (len(self._records) > MOST_RECORDS or kept > MOST_FILE_BYTES):
            oldest = self._records.popleft()
            kept -= min(oldest.output.total, FILE_BYTES)
            self._drop(oldest)

    @staticmethod
    def _drop(record: Record) -> None:
        record.output.close()
        try:
            os.unlink(record.output.path)
        except OSError:
            return  # somebody tidied up already


async def row(record: Record) -> dict[str, str]:
    """One record as `{"ps1", "command", "output"}`."""
    return {"ps1": record.ps1, "command": record.command, "output": (await record.all()).text}
