"""A change on its way into the event_log."""

import asyncio
import logging
from contextlib import suppress

from app.domain.errors import StaleCheckpoint, StoreUnavailable
from app.domain.repositories.event_log import Commit, EventLog

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.3
"""Between two tries. Short: the stream stands still until the first succeeds."""


class Writing:
    """One change, tried again until the store has taken it, so it has to tell what it follows. Begins at once."""

    def __init__(self, event_log: EventLog, session_id: str, change: Commit) -> None:
        self._event_log = event_log
        self._session_id = session_id
        self._change = change
        self._hurried = asyncio.Event()
        self._task = asyncio.create_task(self._write(), name=f"change of {session_id}")

    async def finish(self) -> None:
        """Wait until it is stored. When the caller is cancelled, the try that is under way is still waited for, since
        it may have reached the store, but none follows.

        Raises:
            Superseded, LeaseLost, StaleCheckpoint, NotFound, TooLarge: see `EventLog.commit`. It is not stored.
            StoreUnavailable: the store was away, and `hurry` was called.
        """
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self.hurry()
            while not self._task.done():
                with suppress(asyncio.CancelledError):  # asked once more: the answer is the same
                    await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # seen; the cancellation matters more
            raise

    def hurry(self) -> None:
        """Nobody wants to wait for the store any longer: no try follows the one that is under way."""
        self._hurried.set()

    async def _write(self) -> None:
        away = False
        while True:
            try:
                await self._event_log.commit(self._session_id, self._change)
                return
            except StaleCheckpoint:
                raise
            except StoreUnavailable as error:
                if self._hurried.is_set():
                    raise
                if not away:
                    log.warning("the store is away; what was done waits for it", extra={"error": str(error)})
                away = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self._hurried.wait()
