"""What a sandbox on this machine must not read of the service: its memory and the environment it was started with."""

import ctypes
import sys

_SET_DUMPABLE = 4
"""`PR_SET_DUMPABLE` of prctl(2)."""


def hide_process() -> None:
    """Close `/proc/<our pid>` (environment, memory, open files) to other programs of the same user.

    A local sandbox runs as the service's user, who could otherwise read the API key there. Programs started from here
    on are not concerned; root can look all the same. Does nothing where there is no Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
