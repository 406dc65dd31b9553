"""A wake-up call for any number of waiters."""

import asyncio


class Pulse:
    """Each `strike` wakes whoever waits at that moment; nothing is remembered for those who come later."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def strike(self) -> None:
        """Wakes all present waiters."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, seconds: float) -> bool:
        """Waits for the next strike, at most `seconds`; says whether there was one."""
        if seconds <= 0:
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True
