"""Which processes on this machine are ours: the mark that they carry, and the end of those that are left over."""

import hashlib
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK_VARIABLE = "ANKER_SANDBOX"
"""The environment variable that every process of a sandbox inherits."""

ROUND_SECONDS = 0.02
ROUNDS = 50
QUIET_ROUNDS = 2
SAME_SECONDS = 2.0
"""How far two readings of one process's start may lie apart, for the machine's clock is set now and then."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told from a later one that was given the same number."""

    pid: int
    started: float
    """Seconds since the epoch."""

    @classmethod
    def of(cls, pid: int) -> "Identity":
        """Of a process that runs, or has ended and was not waited for yet: then `alive` is False."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return cls(pid, 0.0)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < SAME_SECONDS
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


class Ledger:
    """The sandboxes of one data folder. A mark is `<hash of the folder's real path>:<session id>`.

    Methods that look at processes take milliseconds and are meant for threads.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` exists or can be made."""
        self._prefix = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16] + ":"

    def mark(self, session_id: str) -> str:
        """What the processes of a session's sandbox carry."""
        return self._prefix + session_id

    def sessions(self) -> set[str]:
        """The ids of the sessions that have marked processes."""
        marks = {_mark_of(process) for process in psutil.process_iter()}
        return {mark.removeprefix(self._prefix) for mark in marks if mark.startswith(self._prefix)}

    def kill(self, session_ids: Collection[str]) -> int:
        """Kill the processes of these sessions; answers how many it saw.

        Looks again until none is left, since a process may have made another meanwhile; gives up after a second.
        None has to be seen twice: while a process becomes another program it has no environment to be known by.
        """
        marks = {self.mark(session_id) for session_id in session_ids}
        spared = {os.getpid(), os.getppid()}
        killed: set[int] = set()
        quiet = 0
        for _ in range(ROUNDS):
            found = [each for each in psutil.process_iter() if each.pid not in spared and _mark_of(each) in marks]
            quiet = 0 if found else quiet + 1
            if quiet == QUIET_ROUNDS:
                break
            for process in found:
                killed.add(process.pid)
                kill(process)
            time.sleep(ROUND_SECONDS)
        return len(killed)


def end_family(member: Identity, *, grace: float) -> bool:
    """End a process that leads its group and is not our child, and all that it started; waits until it is gone.

    It is asked to end itself, and killed after `grace` seconds. Answers whether it ran.
    """
    if not member.alive:
        return False
    try:
        os.killpg(member.pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        return False
    if not _gone(member, seconds=grace):
        kill_families({member.pid})
        _gone(member, seconds=grace)
    return True


def _gone(member: Identity, *, seconds: float) -> bool:
    """Whether it ends in time; one that nobody has waited for counts as gone."""
    deadline = time.monotonic() + seconds
    while member.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(ROUND_SECONDS)
    return True


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
