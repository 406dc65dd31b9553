"""The output of one command: both ends in memory, all of it in a file."""

import os
from pathlib import Path

HEAD_BYTES = 32 * 1024
"""Number of bytes of the start to keep in memory."""
TAIL_BYTES = 192 * 1024
"""Number of bytes of the end to keep in memory."""
FILE_BYTES = 64 * 1024 * 1024
"""Maximum size of an output file, in bytes."""
_CUT = f"\n[cut here: only the first {FILE_BYTES // (1024 * 1024)} MiB are kept]\n".encode()


class Output:
    """Output that grows by `append`. Positions count bytes from the start. The file gets the first 64 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self.cut = False
        """Whether the file is incomplete, because of its limit or a full disk."""
        self._head = bytearray()
        self._tail = bytearray()
        self._tail_start = 0
        self._fd: int | None = None

    def open(self) -> None:
        """Create the file.

        Raises:
            OSError: It cannot be created.
        """
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def append(self, data: bytes) -> None:
        """Append more output."""
        self._keep_in_file(data)
        self.total += len(data)
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
            self._tail_start = max(self._tail_start, len(self._head))
        self._tail += data
        # Trimmed only at twice the size, so that each byte is moved at most once.
        if len(self._tail) > 2 * TAIL_BYTES:
            surplus = len(self._tail) - TAIL_BYTES
            del self._tail[:surplus]
            self._tail_start += surplus

    def read_from(self, position: int) -> tuple[bytes, bytes, int]:
        """Return the output from `position` on as (before the gap, after the gap, bytes no longer in memory)."""
        before = bytes(self._head[position:])
        tail_from = max(position, self._tail_start, len(self._head))
        after = bytes(self._tail[tail_from - self._tail_start :])
        gap = self.total - max(position, 0) - len(before) - len(after)
        return (before, after, gap) if gap > 0 else (before + after, b"", 0)

    def release(self) -> None:
        """Drop the output in memory and close the file, which stays."""
        self.close()
        self._head.clear()
        self._tail.clear()
        self._tail_start = self.total

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _keep_in_file(self, data: bytes) -> None:
        if self._fd is None or self.cut:
            self.cut = self.cut or bool(data)
            return
        room = FILE_BYTES - self.total
        try:
            # Written on the event loop: the page cache is faster than waking a thread.
            os.write(self._fd, data[:room])
            if len(data) > room:
                self.cut = True
                os.write(self._fd, _CUT)
        except OSError:
            self.cut = True  # a full disk must not stop the command
