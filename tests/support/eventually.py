"""Wait until a condition holds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

WAIT_SECONDS = 60.0
"""Default limit in seconds: much more than a condition needs, so that a loaded machine fails no test."""


async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    *,
    seconds: float = WAIT_SECONDS,
    interval: float = 0.005,
    message: str = "",
) -> T:
    """Wait until `condition` returns a true value, and return that value.

    Args:
        condition: A function or a coroutine function. It is called in the event loop; pass
            `lambda: asyncio.to_thread(f)` for one that blocks.
        seconds: The limit for the whole wait, a call in flight included.
        interval: Seconds between two calls.
        message: What the failure says; the last value by default.

    Raises:
        AssertionError: The condition did not hold within `seconds`.
    """
    value: object = None
    try:
        async with asyncio.timeout(seconds) as limit:
            while True:
                value = condition()
                if isinstance(value, Awaitable):
                    value = await value
                if value:
                    return cast("T", value)
                await asyncio.sleep(interval)
    except TimeoutError:
        if not limit.expired():
            raise
    raise AssertionError(f"not within {seconds:g} s: {message or f'the last value was {value!r}'}")


def wait_until(
    condition: Callable[[], T], *, seconds: float = WAIT_SECONDS, interval: float = 0.01, message: str = ""
) -> T:
    """Do the same as `eventually`, blocking the thread."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {message or f'the last value was {value!r}'}"
        time.sleep(interval)
    return value
