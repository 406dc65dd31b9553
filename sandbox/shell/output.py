"""The output of one command: both ends in memory, all of it in a file."""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from sandbox.identity import Identity

HEAD_BYTES = 32 * 1024
"""Number of bytes of the start to keep in memory."""
TAIL_BYTES = 192 * 1024
"""Number of bytes of the end to keep in memory."""
FILE_BYTES = 64 * 1024 * 1024
"""Maximum size of an output file, in bytes."""
_CUT = f"\n[cut here: only the first {FILE_BYTES // (1024 * 1024)} MiB are kept]\n".encode()


class RunFolder:
    """A folder of this run of the program, in a folder that other runs share. `make` makes it when it is missing."""

    def __init__(self, parent: Path, owner: Identity, mode: int = 0o700) -> None:
        """Choose the folder's name, and remove the folders of runs that have ended."""
        self.path = parent / f"run-{os.getpid()}-{secrets.token_hex(4)}"
        self._owner = owner
        self._mode = mode
        with owner.acting(), suppress(OSError):
            for folder in parent.glob("run-*-*"):
                pid = folder.name.split("-")[1]
                if pid.isdigit() and not _is_alive(int(pid)):
                    owner.remove_folder(folder)

    def make(self) -> Path:
        """Make the folder if it is missing, with the rights of this thread, and return its path.

        Raises:
            OSError: It cannot be made, or its parent belongs to another user than its owner.
        """
        if self.path.is_dir():
            return self.path
        parent = self.path.parent
        parent.mkdir(mode=self._mode, parents=True, exist_ok=True)
        found = parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self._owner.uid:
            # Another user created it first in a shared temporary folder.
            raise PermissionError(1, f"{parent} belongs to another user")
        self.path.mkdir(mode=self._mode, exist_ok=True)
        return self.path

    def remove(self) -> None:
        """Remove the folder with everything in it. Blocking."""
        self._owner.remove_folder(self.path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Output:
    """Output that grows by `append`. Positions count bytes from the start. The file gets the first 64 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self.cut = False
        """Whether the file is missing or incomplete, because of its limit or a full disk."""
        self._head = bytearray()
        self._tail = bytearray()
        self._tail_start = 0
        self._fd: int | None = None

    @property
    def file(self) -> str:
        """The path of the file while output is written to it; empty if there is none, or it was removed."""
        return os.fspath(self.path) if self._fd is not None and os.fstat(self._fd).st_nlink else ""

    def open(self) -> None:
        """Create the file. If that fails, the output is kept in memory only."""
        # Whatever has this name belongs to the agent. Opening a FIFO, for example, would wait for its other end.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o600)
        except OSError:
            self.cut = True

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
