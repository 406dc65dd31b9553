"""This process among others: the end of its parent, orphans it adopts, what must not outlive it."""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Container, Coroutine
from types import FrameType

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_REAP_SECONDS = 1.0
"""How long a dead process may stay that was passed over, as one in front of it was somebody else's to collect."""
_SWARM_SECONDS = 0.02


def become_subreaper() -> bool:
    """Makes orphaned descendants children of this process instead of init's; False where the kernel cannot."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def take_signals_back() -> None:
    """Undoes signals ignored by whoever started this process: commands would inherit that and shrug off Ctrl-C."""
    names = ("SIGINT", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGHUP")
    for number in (getattr(signal, name) for name in names):
        if signal.getsignal(number) == signal.SIG_IGN:
            # A handler is reset to the default in a new program; being ignored is not.
            signal.signal(number, _nothing)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """A handler that only takes the place of the default."""


def dies_with_us(name: str) -> list[str]:
    """What to put before a command so that the kernel sends it the signal `name` when this service dies; nothing where
    util-linux is not installed, or where this is process 1, with which everything else dies anyway."""
    setpriv = shutil.which("setpriv") if os.getpid() != 1 else None
    return [setpriv, "--pdeathsig", name, "--"] if setpriv else []


def hide() -> None:
    """Closes `/proc/<our pid>` (the token in our environment, our memory) to other programs of this user, and keeps
    them from tracing us. Programs started from here are not concerned; root can look all the same."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def reap(own: Container[int]) -> None:
    """Collects dead adopted processes; those in `own` are left to the code that waits for them."""
    while hasattr(os, "waitid"):
        try:
            # Only looks: collecting any child would take the exit status from whoever waits for it.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in own:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


async def keep_reaping(own: Callable[[], Container[int]]) -> None:
    """Reaps for ever, soon after a child has died: the dead count against the container's limit of processes.

    Takes SIGCHLD for itself; to be run on the main thread."""
    loop, died = asyncio.get_running_loop(), asyncio.Event()
    # Not by the loop's own means: uvloop keeps this signal to itself, though only for processes that it starts.
    signal.signal(signal.SIGCHLD, lambda _number, _frame: loop.call_soon_threadsafe(died.set))
    try:
        while True:
            died.clear()
            reap(own())
            # Orphans die in swarms: one look for many of them.
            await asyncio.sleep(_SWARM_SECONDS)
            await _within(died.wait(), _REAP_SECONDS)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


async def _within(wait: Coroutine[object, object, object], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        return


_GUARDIAN = """\
read -r _
for _ in 1 2 3; do
  for file in $(grep -lsz "^$1-" /proc/[0-9]*/environ); do
    pid=${file#/proc/}
    kill -9 "${pid%/environ}"
  done
done
"""


def start_guardian(mark: str) -> None:
    """Starts a small process that outlives this one, should it be killed outright, just long enough to kill what has
    an environment variable that begins with `mark` and a dash. Only on Linux, and not where this is process 1, whose
    end is everybody's."""
    if sys.platform != "linux" or os.getpid() == 1:
        return
    reading, _held_until_we_end = os.pipe()
    # In a session of its own: what is sent to our process group must not end it with us.
    subprocess.Popen(  # noqa: S603 - fixed program
        ["/bin/sh", "-c", _GUARDIAN, "sandbox-guardian", mark],
        stdin=reading,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        cwd="/",
        start_new_session=True,
    )
    os.close(reading)


def watch_parent(fd: int, gone: Callable[[], None]) -> None:
    """Calls `gone` once when the pipe `fd` is at its end, that is, when the parent has died or closed it."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)

    def readable() -> None:
        try:
            if os.read(fd, 4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        loop.remove_reader(fd)
        gone()

    loop.add_reader(fd, readable)
