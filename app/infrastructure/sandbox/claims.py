"""Which process of the service has a session's local sandbox, and how the others on this machine reach it.

In `<root>/.running` each session that has one has two files: `<name>.lock`, locked (flock) by the process that made the
sandbox for as long as it has it, and `<name>.json`, the record of what runs. The lock is what is true: the kernel takes
it from a process that dies, however it dies. `<name>.gone` tells for a while that the session was deleted.

Everything here may block for a moment: call it in a thread.
"""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from app.infrastructure.sandbox.ledger import Identity

FOLDER = ".running"
LOCK, RECORD, DRAFT, GONE = ".lock", ".json", ".new", ".gone"
ONLY_OURS = 0o600
GONE_SECONDS = 600.0
"""Longer than any start that was asked for before a deletion may still be on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A sandbox that runs, or has begun to: its socket listens from before the record is written."""

    session_id: str
    computer: str
    """Names this life of the sandbox."""
    address: str
    token: str
    home: str
    """Its workspace, symlinks resolved."""
    child: Identity
    """The sandbox's own process."""
    maker: Identity
    """The service's process, whose end is the sandbox's."""

    @property
    def alive(self) -> bool:
        """Whether both processes run."""
        return self.maker.alive and self.child.alive


_RECORD = TypeAdapter(Record)


class Claim:
    """A session's lock, held until `release` or the end of this process."""

    def __init__(self, lock: IO[bytes], base: Path) -> None:
        """`lock` is the locked file, owned from here on; `base` the path of the session's files without the ending."""
        self._lock = lock
        self._base = base
        self.stale = _path(base, RECORD).exists()
        """Whether a process that held this before was killed: what it left over has to be ended first."""
        self.left = _read(base) if self.stale else None
        """Its record, if it can be read."""

    def publish(self, record: Record) -> None:
        """Tell the other processes; the record is written in one piece.

        Raises:
            OSError: the disk is full, for instance.
        """
        draft = _path(self._base, DRAFT)
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, ONLY_OURS), "wb") as file:
            file.write(_RECORD.dump_json(record))
        draft.rename(_path(self._base, RECORD))

    def retract(self) -> None:
        """Nobody else finds the sandbox from now on. Idempotent."""
        if self._lock.closed:
            return  # what is there is another's
        _path(self._base, RECORD).unlink(missing_ok=True)

    def release(self) -> None:
        """Give the session to whoever claims it next. Idempotent."""
        if self._lock.closed:
            return
        for ending in (RECORD, DRAFT, LOCK):
            _path(self._base, ending).unlink(missing_ok=True)
        # Said aloud: a process that is just being forked would keep a lock that is only closed.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock.close()


class Claims:
    """The claims on the sessions of one folder, by the names of the sessions' folders."""

    def __init__(self, root: Path) -> None:
        """`root` holds the sessions' folders; it exists or can be made."""
        self._folder = root / FOLDER

    def claim(self, name: str) -> Claim | None:
        """Become the one who has the session; None: somebody is it. Never waits.

        Raises:
            OSError: the folder cannot be written to.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        base = self._folder / name
        while True:
            lock = os.fdopen(os.open(_path(base, LOCK), os.O_RDWR | os.O_CREAT, ONLY_OURS), "r+b")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(lock, _path(base, LOCK)):
                    return Claim(lock, base)
            except BlockingIOError:
                lock.close()
                return None
            except BaseException:
                lock.close()
                raise
            lock.close()  # who held it deleted the file meanwhile: it locks nothing any more

    def held(self, name: str) -> bool:
        """Whether somebody has the session, or is clearing up after it, as far as can be seen."""
        try:
            with _path(self._folder / name, LOCK).open("rb") as lock:
                # Shared: those who only look do not get in one another's way.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def living(self, name: str) -> Record | None:
        """The session's sandbox, if its process and its maker run."""
        record = _read(self._folder / name)
        return record if record is not None and record.alive else None

    def names(self) -> set[str]:
        """The names of the sessions that somebody has, or had when he was killed."""
        return {path.stem for path in self._files() if path.suffix != GONE}

    def condemn(self, name: str) -> None:
        """The session is about to be deleted: what was asked to start before comes to nothing, in any process.

        Raises:
            OSError: the folder cannot be written to.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _path(self._folder / name, GONE).touch(ONLY_OURS)

    def condemned(self, name: str) -> int:
        """A number that another deletion changes; 0 when nothing is known of any."""
        try:
            return _path(self._folder / name, GONE).stat().st_mtime_ns
        except OSError:
            return 0

    def tidy(self) -> None:
        """Forget deletions of long ago."""
        for path in self._files():
            try:
                if path.suffix == GONE and time.time() - path.stat().st_mtime > GONE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue  # another process was quicker

    def _files(self) -> list[Path]:
        try:
            return list(self._folder.iterdir())
        except FileNotFoundError:
            return []


def _path(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _read(base: Path) -> Record | None:
    try:
        return _RECORD.validate_json(_path(base, RECORD).read_bytes())
    except (OSError, ValidationError):
        return None  # none, or one that a machine without power has cut short


def _is_at(lock: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False
