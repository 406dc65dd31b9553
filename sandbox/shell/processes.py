"""Search and termination of the processes of a shell. Blocking, so call it in a thread."""

import os
import signal
import time
from collections.abc import Mapping, Set
from contextlib import suppress

from sandbox.identity import Identity
from sandbox.shell.environment import SHELL_MARK

_STEP = 0.003
"""Pause between two looks at processes that are ending, in seconds."""

_KILL_SECONDS = 5.0
"""Maximum time for processes to end after SIGKILL, in seconds.

Milliseconds are usual, but a busy machine may need more, and one that waits for a device may not end at all.
"""


def _process_table() -> dict[int, tuple[int, bool]]:
    """Return every process: pid -> (parent, whether it is a zombie)."""
    import psutil  # slow to import and needed only here

    found: dict[int, tuple[int, bool]] = {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                found[process.pid] = (process.ppid(), process.status() == psutil.STATUS_ZOMBIE)
        except psutil.Error:
            continue
    return found


def _marks_of(pids: list[int], agent: Identity) -> dict[int, str | None]:
    """Return the mark of each process. Only its own user may read the environment of a process."""
    import psutil

    found: dict[int, str | None] = {}
    with agent.acting():
        for pid in pids:
            try:
                found[pid] = psutil.Process(pid).environ().get(SHELL_MARK)
            except (psutil.Error, OSError):
                continue
    return found


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _with_descendants(rows: dict[int, tuple[int, bool]], found: set[int]) -> set[int]:
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


def shell_processes(leaders: Mapping[int, str], agent: Identity) -> list[int]:
    """Return the living processes that the bashes `leaders` (pid -> mark) of `agent` started, without the bashes.

    These are their descendants, the processes in their sessions, and daemons that left both but still carry a mark.
    """
    rows, marks = _process_table(), set(leaders.values())
    # Orphans belong to init, or to this service as the subreaper.
    adopted = [pid for pid, (parent, _) in rows.items() if parent in (1, os.getpid()) and pid not in leaders]
    roots = {pid for pid, mark in _marks_of(adopted, agent).items() if mark in marks}
    roots |= {pid for pid in rows if _session_of(pid) in leaders} | set(leaders)
    found = _with_descendants(rows, roots) - set(leaders) - {os.getpid()}
    return sorted(pid for pid in found if pid in rows and not rows[pid][1])


def descendants() -> list[int]:
    """Return the living descendants of this process."""
    rows = _process_table()
    found = _with_descendants(rows, {os.getpid()}) - {os.getpid()}
    return sorted(pid for pid in found if not rows[pid][1])


def send_signal(pids: list[int], number: int) -> None:
    """Send a signal to each of `pids` that still exists."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _send_signal_to_groups(pids: list[int], number: int, spared: Set[int]) -> None:
    """Send a signal to the process groups of `pids`, but in the groups `spared` only to `pids`.

    The kernel signals a group at once: no process of a fork bomb escapes by a fork.
    """
    groups: dict[int, list[int]] = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            groups.setdefault(os.getpgid(pid), []).append(pid)
    for group, members in groups.items():
        if group in spared:
            send_signal(members, number)
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def kill_shell_processes(leaders: Mapping[int, str], agent: Identity, *, grace: float = 0.12) -> None:
    """End the processes of `leaders` (see `shell_processes`).

    Sends SIGTERM, waits `grace` seconds, then sends SIGKILL. The search repeats until it finds no process twice in a
    row: a search may miss a process that is forked meanwhile, but each one ends all that may fork those of the next.
    """
    spared = {*leaders, os.getpgrp()}
    pids = shell_processes(leaders, agent)
    for number in (signal.SIGTERM, signal.SIGCONT):  # a stopped process does not handle SIGTERM
        _send_signal_to_groups(pids, number, spared)
    deadline = time.monotonic() + grace
    while pids and time.monotonic() < deadline:
        time.sleep(_STEP)
        pids = [pid for pid in pids if _running(pid)]
    deadline = time.monotonic() + _KILL_SECONDS
    empty_searches = 0
    while empty_searches < 2 and time.monotonic() < deadline:
        pids = shell_processes(leaders, agent)
        _send_signal_to_groups(pids, signal.SIGKILL, spared)
        empty_searches = 0 if pids else empty_searches + 1
        time.sleep(_STEP)


def kill_descendants(seconds: float) -> bool:
    """Kill all descendants for up to `seconds` and return whether all are gone."""
    deadline = time.monotonic() + seconds
    while pids := descendants():
        if time.monotonic() > deadline:
            return False
        send_signal(pids, signal.SIGKILL)
        time.sleep(_STEP)
    return True


def _running(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
