"""Which processes on this machine are ours: the mark that they carry, and the end of those that are left over."""

import fcntl
import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO

import psutil

MARK_VARIABLE = "ANKER_SANDBOX"
"""The environment variable that every process of a sandbox inherits."""

ROUND_SECONDS = 0.02
ROUNDS = 50
QUIET_ROUNDS = 2


class Ledger:
    """The sandboxes of one data folder. A mark is `<hash of the folder's real path>:<session id>`.

    Methods that look at processes take milliseconds and are meant for threads.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` exists or can be made; it holds the lock that tells a living owner from a dead one."""
        self._folder = folder
        self._prefix = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16] + ":"
        self._lock: IO[bytes] | None = None

    def mark(self, session_id: str) -> str:
        """What the processes of a session's sandbox carry."""
        return self._prefix + session_id

    def claim(self) -> bool:
        """Become the folder's owner, until `release` or death. False: another living service is.

        Raises:
            OSError: the folder cannot be written to.
        """
        if self._lock is not None:
            return True
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / ".owner").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Give up what `claim` gave."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kill(self, session_ids: Collection[str] | None = None) -> int:
        """Kill the processes of these sessions, or of every session of this folder; answers how many it saw.

        Looks again until none is left, since a process may have made another meanwhile; gives up after a second.
        None has to be seen twice: while a process becomes another program it has no environment to be known by.
        """
        marks = None if session_ids is None else {self.mark(session_id) for session_id in session_ids}
        spared = {os.getpid(), os.getppid()}

        def belongs(process: psutil.Process) -> bool:
            carried = "" if process.pid in spared else _mark_of(process)
            return carried.startswith(self._prefix) if marks is None else carried in marks

        killed: set[int] = set()
        quiet = 0
        for _ in range(ROUNDS):
            found = [process for process in psutil.process_iter() if belongs(process)]
            quiet = 0 if found else quiet + 1
            if quiet == QUIET_ROUNDS:
                break
            for process in found:
                killed.add(process.pid)
                kill(process)
            time.sleep(ROUND_SECONDS)
        return len(killed)


def descendants(pid: int) -> list[psutil.Process]:
    """The living children of `pid`, and theirs."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def kill_families(pids: Collection[int]) -> None:
    """Kill these processes and all that they started. One look at the machine's processes, however many there are."""
    children: dict[int, list[psutil.Process]] = {}
    members: list[psutil.Process] = []
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process)
        if process.pid in pids:
            members.append(process)
    for member in members:  # grows while it is walked
        members += children.get(member.pid, ())
    for member in members:
        kill(member)


def kill(process: psutil.Process) -> None:
    """SIGKILL, unless it is gone already (psutil sees to it that its id was not given to another) or not ours."""
    try:
        process.kill()
    except psutil.Error:
        return


def _mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK_VARIABLE, "")
    except (psutil.Error, OSError):
        return ""  # another user's, or gone
