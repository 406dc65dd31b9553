"""The wall clock."""

import time


def unix_now() -> int:
    """Return the current time in whole seconds since the epoch, UTC."""
    return int(time.time())
