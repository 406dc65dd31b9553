"""What one command wrote: its two ends in memory, the whole in a file."""

import os
from pathlib import Path

HEAD_BYTES = 32 * 1024
TAIL_BYTES = 192 * 1024
FILE_BYTES = 64 * 1024 * 1024
_CUT = f"\n[cut here: only the first {FILE_BYTES // (1024 * 1024)} MiB are kept]\n".encode()


class Output:
    """Grows by `append`; positions count bytes from the first one written. `path` gets the first 64 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self.cut = False
        """Whether the file does not hold everything (its limit, or a disk that would not take more)."""
        self._head = bytearray()
        self._tail = bytearray()
        self._tail_start = 0
        self._fd: int | None = None

    def open(self) -> None:
        """Makes the file; raises OSError."""
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def append(self, data: bytes) -> None:
        """Takes more output."""
        self._keep_in_file(data)
        self.total += len(data)
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
            self._tail_start = max(self._tail_start, len(self._head))
        self._tail += data
        # Trimmed only when twice the size, so that each byte is moved at most once.
        if len(self._tail) > 2 * TAIL_BYTES:
            surplus = len(self._tail) - TAIL_BYTES
            del self._tail[:surplus]
            self._tail_start += surplus

    def since(self, position: int) -> tuple[bytes, bytes, int]:
        """What came from `position` on, as (before the gap, after the gap, bytes that are no longer in memory)."""
        before = bytes(self._head[position:])
        tail_from = max(position, self._tail_start, len(self._head))
        after = bytes(self._tail[tail_from - self._tail_start :])
        gap = self.total - max(position, 0) - len(before) - len(after)
        return (before, after, gap) if gap > 0 else (before + after, b"", 0)

    def forget(self) -> None:
        """Drops what is in memory and closes the file; the file stays."""
        self.close()
        self._head.clear()
        self._tail.clear()
        self._tail_start = self.total

    def close(self) -> None:
        """Closes the file; idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _keep_in_file(self, data: bytes) -> None:
        if self._fd is None or self.cut:
            self.cut = self.cut or bool(data)
            return
        room = FILE_BYTES - self.total
        try:
            # Straight from the event loop: the page cache takes it faster than a thread could be woken.
            os.write(self._fd, data[:room])
            if len(data) > room:
                self.cut = True
                os.write(self._fd, _CUT)
        except OSError:
            self.cut = True  # a full disk must not stop the command
