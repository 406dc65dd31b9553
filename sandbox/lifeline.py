"""Process lifetime: the end of the parent, orphaned descendants, and processes that must not outlive the service."""

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Container, Coroutine
from types import FrameType

from sandbox.identity import ENV

_PR_SET_DUMPABLE = 4
"""`prctl` option (see prctl(2))."""
_PR_SET_CHILD_SUBREAPER = 36
"""`prctl` option (see prctl(2))."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REAP_SECONDS = 1.0
"""Interval between two searches for dead processes that an earlier search had to skip, in seconds."""
_BATCH_SECONDS = 0.02
"""Pause after a search for dead processes, in seconds."""


def become_subreaper() -> bool:
    """Adopt orphaned descendants instead of init. Return False where the kernel does not support it."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def restore_default_signals() -> None:
    """Reset signals that the parent process ignored. Commands would inherit that and ignore Ctrl-C."""
    names = ("SIGINT", "SIGQUIT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGHUP")
    for number in (getattr(signal, name) for name in names):
        if signal.getsignal(number) == signal.SIG_IGN:
            # A new program resets a handler to the default, but keeps an ignored signal ignored.
            signal.signal(number, _nothing)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: a handler that replaces the default."""


def launch_prefix(name: str) -> list[str]:
    """Return a command prefix that makes the kernel send signal `name` to the command when this service dies.

    The death of process 1 ends all other processes anyway. Its prefix undoes `stop_on_signal_from_outside`.
    Without util-linux there is no prefix.
    """
    if os.getpid() == 1:
        return [ENV, f"--default-signal={','.join(each.name[3:] for each in _STOP_SIGNALS)}"]
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", name, "--"] if setpriv else []


def block_stop_signals() -> None:
    """Make SIGTERM and SIGINT wait for `stop_on_signal_from_outside`. Call it before any thread starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def stop_on_signal_from_outside(on_stop: Callable[[], None]) -> None:
    """Call `on_stop` on the event loop when SIGTERM or SIGINT comes from outside the container.

    Signals from inside are ignored: `sudo pkill python` would end the sandbox. Only for process 1, to which processes
    outside have the pid 0.
    """
    loop = asyncio.get_running_loop()

    def wait() -> None:
        while signal.sigwaitinfo(_STOP_SIGNALS).si_pid != 0:
            pass
        loop.call_soon_threadsafe(on_stop)

    threading.Thread(target=wait, name="stop-signals", daemon=True).start()


def hide_process() -> None:
    """Hide `/proc/<pid>` (environment and memory) from other programs of this user, and forbid them to trace us.

    Programs started from here are not affected. Root still has access.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def reap_orphans(own: Container[int]) -> None:
    """Collect dead adopted processes, except those in `own`, which other code waits for."""
    while hasattr(os, "waitid"):
        try:
            # Only peek: collecting any child would take the exit status from the code that waits for it.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in own:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
        except ChildProcessError:
            return


async def reap_orphans_forever(own: Callable[[], Container[int]]) -> None:
    """Collect dead processes soon after a child has died. They count against the container's limit of processes.

    Takes over SIGCHLD. Run it on the main thread.
    """
    loop, died = asyncio.get_running_loop(), asyncio.Event()
    # The loop's own handler is not available: uvloop reserves SIGCHLD.
    signal.signal(signal.SIGCHLD, lambda _number, _frame: loop.call_soon_threadsafe(died.set))
    try:
        while True:
            died.clear()
            reap_orphans(own())
            # Orphans often die together, so one search collects a batch.
            await asyncio.sleep(_BATCH_SECONDS)
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
    """Start a small process that kills leftovers if this process is killed.

    It kills every process with an environment variable that begins with `mark` and a dash. It runs only on Linux, and
    not
    beside process 1, whose death ends all other processes.
    """
    if sys.platform != "linux" or os.getpid() == 1:
        return
    reading, _held_until_we_end = os.pipe()
    # It has its own session, so that signals to our process group do not end it.
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


def watch_parent(fd: int, on_end: Callable[[], None]) -> None:
    """Call `on_end` once when the pipe `fd` reaches its end: the parent has died or closed it."""
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
        on_end()

    loop.add_reader(fd, readable)
