"""Finding and ending the processes of a shell. Blocking; for threads."""

import os
import signal
import time
from collections.abc import Mapping

from sandbox.shell.environment import SHELL_MARK

_STEP = 0.003


def _rows() -> dict[int, tuple[int, bool]]:
    """Every process: pid -> (parent, whether it is a zombie)."""
    import psutil  # takes a while to load and is needed only here

    found: dict[int, tuple[int, bool]] = {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                found[process.pid] = (process.ppid(), process.status() == psutil.STATUS_ZOMBIE)
        except psutil.Error:
            continue
    return found


def _marked(pid: int) -> str | None:
    import psutil

    try:
        return psutil.Process(pid).environ().get(SHELL_MARK)
    except (psutil.Error, OSError):
        return None


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _below(rows: dict[int, tuple[int, bool]], found: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in rows.items():
        children.setdefault(parent, []).append(pid)
    todo = list(found)
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def family(leaders: Mapping[int, str]) -> list[int]:
    """The living processes that the bashes `leaders` (pid -> word) began, without them: their descendants, whatever is
    in their sessions, and those that left both (daemons) but still carry a word in their environment."""
    rows, words = _rows(), set(leaders.values())
    # Who lost its parent belongs to init, or to this service where it is the subreaper.
    adopted = [pid for pid, (parent, _) in rows.items() if parent in (1, os.getpid()) and pid not in leaders]
    roots = {pid for pid in adopted if _marked(pid) in words}
    roots |= {pid for pid in rows if _session(pid) in leaders} | set(leaders)
    found = _below(rows, roots) - set(leaders) - {os.getpid()}
    return sorted(pid for pid in found if pid in rows and not rows[pid][1])


def descendants() -> list[int]:
    """The living processes below this one."""
    rows = _rows()
    found = _below(rows, {os.getpid()}) - {os.getpid()}
    return sorted(pid for pid in found if not rows[pid][1])


def send(pids: list[int], number: int) -> None:
    """Signals all of `pids` that still exist."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def end_family(leaders: Mapping[int, str], *, grace: float = 0.12, hard: float = 0.2) -> bool:
    """Ends what `leaders` began: SIGTERM, `grace` seconds, then SIGKILL for up to `hard` seconds; says if all are gone.

    New ones are looked for until none is found, so a program that forks while it dies does not get away."""
    pids = family(leaders)
    send(pids, signal.SIGTERM)
    send(pids, signal.SIGCONT)  # a stopped process takes no SIGTERM
    deadline = time.monotonic() + grace
    while pids and time.monotonic() < deadline:
        time.sleep(_STEP)
        pids = [pid for pid in pids if _running(pid)]
    deadline = time.monotonic() + hard
    while pids := family(leaders):
        if time.monotonic() > deadline:
            return False
        send(pids, signal.SIGKILL)
        time.sleep(_STEP)
    return True


def kill_descendants(seconds: float) -> bool:
    """SIGKILL to everything below this process until nothing is left, at most `seconds`; says if nothing is left."""
    deadline = time.monotonic() + seconds
    while pids := descendants():
        if time.monotonic() > deadline:
            return False
        send(pids, signal.SIGKILL)
        time.sleep(_STEP)
    return True


def _running(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
