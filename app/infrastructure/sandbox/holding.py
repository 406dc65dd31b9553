"""Whether a session's local sandbox is this process's to make and to end, and how it becomes so."""

import asyncio
import logging

from app.infrastructure.sandbox.claims import Claim
from app.infrastructure.sandbox.ledger import end_family
from app.infrastructure.sandbox.left_over import end_left_over
from app.infrastructure.sandbox.process import GRACE_SECONDS
from app.infrastructure.sandbox.site import Site

log = logging.getLogger(__name__)

SEIZE_SECONDS = 10.0
"""How long another process may take to notice that the sandbox it made was ended."""

LOOK_SECONDS = 0.02


class Holding:
    """One session's claim, while this process has it. Its calls come one after the other."""

    def __init__(self, session_id: str, name: str, site: Site) -> None:
        """`name` is the session's folder's."""
        self._session_id = session_id
        self._name = name
        self._site = site
        self._claims = site.claims
        self.claim: Claim | None = None

    async def gain(self) -> bool:
        """Whether the session is ours now, and nothing is left of the process that had it, should that be dead.

        Raises:
            OSError: the data folder cannot be written to.
        """
        if self.claim is None:
            self.claim = await asyncio.to_thread(self._claims.claim, self._name)
            if self.claim is not None and self.claim.stale:
                log.warning("the process that had the sandbox of session %s was killed", self._session_id)
                await self._end_left_over(self.claim)
        return self.claim is not None

    async def taken(self) -> bool:
        """Whether another process has the session."""
        return self.claim is None and await asyncio.to_thread(self._claims.held, self._name)

    async def seize(self) -> None:
        """Have the session, which may be another process's: its sandbox is ended for as long as it does not let go."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + SEIZE_SECONDS
        while clock() < deadline:
            try:
                if await self.gain():
                    return
            except OSError as error:
                log.warning("session %s cannot be claimed: %s", self._session_id, error.strerror)
                return
            # Again: it may have been asked for since, and is told why it ends.
            await self.condemn()
            if (record := await asyncio.to_thread(self._claims.living, self._name)) is not None:
                await asyncio.to_thread(end_family, record.child, grace=GRACE_SECONDS)
            else:
                await self.kill_marked()  # it may be about to start
            await asyncio.sleep(LOOK_SECONDS)
        log.warning("session %s is deleted though another process does not let go of it", self._session_id)

    async def retract(self) -> None:
        """Other processes find our sandbox no more."""
        if self.claim is not None:
            await asyncio.to_thread(self.claim.retract)

    async def release(self) -> None:
        """Leave the session to whoever claims it next, of this process or another."""
        claim, self.claim = self.claim, None
        if claim is not None:
            await asyncio.to_thread(claim.release)

    async def kill_marked(self) -> None:
        """End what the sandbox did not know of any more, from before a crash for instance."""
        await asyncio.to_thread(self._site.ledger.kill, {self._session_id})

    async def condemn(self) -> None:
        """The session is about to be deleted: what was asked to start before comes to nothing, in any process."""
        try:
            await asyncio.to_thread(self._claims.condemn, self._name)
        except OSError as error:
            log.warning("other processes are not told that session %s is deleted: %s", self._session_id, error.strerror)

    async def deletion(self) -> int:
        """A number that the next deletion changes."""
        return await asyncio.to_thread(self._claims.condemned, self._name)

    async def deleted_since(self, deletion: int) -> bool:
        """Whether there was another one after `deletion`."""
        return await self.deletion() not in (0, deletion)

    async def _end_left_over(self, claim: Claim) -> None:
        await asyncio.to_thread(end_left_over, [claim], self._site.ledger, marked=[self._session_id])
