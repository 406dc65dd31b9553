"""One session's local sandbox through its lives: started, ended when idle, started again, destroyed."""

import asyncio
import logging

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.holding import Holding
from app.infrastructure.sandbox.life import Life
from app.infrastructure.sandbox.loan import Borrower
from app.infrastructure.sandbox.site import Site

log = logging.getLogger(__name__)

WAIT_SECONDS = 45.0
"""How long another process may take to start the session's sandbox, to end it or to clear up after it."""

LOOK_SECONDS = 0.02
FIND_SECONDS = 0.25
ENDED = "The session's sandbox was ended while it started."


class Slot:
    """At most one sandbox process for one session on this machine, whoever asks for it and however often.

    It is ours (a `Life`, while we hold the session) or that of another process of the service (a `Borrower`).
    """

    def __init__(self, session_id: str, site: Site) -> None:
        self.session_id = session_id
        self._site = site
        self._place = site.places.of(session_id)
        self._holding = Holding(session_id, self._place.folder.name, site)
        self._life: Life | None = None
        self._borrower = Borrower(self._place.folder.name, site.claims, exec_seconds=site.exec_seconds)
        self._start: asyncio.Task[HttpSandbox] | None = None
        self._watch: asyncio.Task[None] | None = None
        # Starts, ends and removals come one after the other.
        self._turn = asyncio.Lock()

    @property
    def sandbox(self) -> HttpSandbox | None:
        """The sandbox, if it is ours and its process runs."""
        return self._life.sandbox if self._life and self._life.process.running else None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs, if it is ours."""
        return self._life.process.pid if self._life and self._life.process.running else None

    @property
    def ours(self) -> bool:
        """Whether the session is this process's."""
        return self._holding.claim is not None

    @property
    def empty(self) -> bool:
        """Whether there is nothing here to keep: no process, dead or alive, and nothing under way."""
        kept = self._life is not None or self._borrower.sandbox is not None or self.ours
        return not kept and not self._turn.locked() and (self._start is None or self._start.done())

    @property
    def died(self) -> bool:
        """Whether our process has ended by itself and nobody has cleared up after it yet."""
        return self._life is not None and not self._life.process.running

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last call from this process; 0 while there is one, or no sandbox."""
        return self._life.activity.idle_seconds if self._life else self._borrower.idle_seconds

    def begin(self) -> asyncio.Task[HttpSandbox]:
        """The start that is under way, or a new one. It is shared: waiters must not cancel it."""
        if self._start is None or self._start.done():
            self._start = asyncio.create_task(self._started(), name=f"sandbox start {self.session_id}")
            self._start.add_done_callback(self._report)
        return self._start

    async def acquire(self) -> HttpSandbox:
        """The sandbox, ready; started first when none runs.

        Raises:
            SandboxUnavailable: it does not start, or was ended meanwhile.
        """
        if (sandbox := self.sandbox) is not None and self._life is not None:
            self._life.activity.touch()
            return sandbox
        start = self.begin()
        await asyncio.wait({start})
        if start.cancelled():
            raise SandboxUnavailable(ENDED)
        return start.result()

    async def find(self) -> HttpSandbox | None:
        """The sandbox if it runs, whoever made it. One that we are starting is not there yet."""
        if self._life is not None or self.ours:
            return self.sandbox
        if self._start is not None and not self._start.done():
            # It may be there already and is only being looked up.
            await asyncio.wait({self._start}, timeout=FIND_SECONDS)
            return self.sandbox or self._borrower.sandbox
        async with self._turn:
            return self.sandbox if self.ours else await self._borrower.find()

    async def rest(self, *, idle_for: float) -> bool:
        """End our process if it died or nobody used it for `idle_for` seconds; the workspace stays.

        Answers whether it did. The sandbox of another process is let go of, and left to that process.
        """
        async with self._turn:
            if self._borrower.idle_seconds >= idle_for:
                await self._borrower.let_go()
            # Somebody may have come while this waited for its turn.
            life = self._life
            if life is None:
                return False
            if not self.died and await life.idle_seconds(least=idle_for) < idle_for:
                return False
            await self._end_life()
            await self._holding.kill_marked()
            await self.release()
            return True

    async def leave(self) -> None:
        """Our sandbox is about to be ended: other processes find it no more, and nobody else clears up after it."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        await self._holding.retract()

    async def end(self) -> None:
        """End our process, or its start, whoever uses it; the workspace stays.

        What the sandbox may have lost sight of is left to the caller, who looks once for all slots, and then calls
        `release`.
        """
        await self._abort_start()
        await self.leave()
        async with self._turn:
            await self._borrower.let_go()
            await self._end_life()

    async def release(self) -> None:
        """Leave the session to whoever claims it next, of this process or another."""
        await self._holding.release()

    async def destroy(self) -> None:
        """End everything, whoever made it, and delete the folder."""
        await self._abort_start()
        async with self._turn:
            await self._borrower.let_go()
            await self._end_life()
            await self._holding.condemn()
            if not self.ours:
                if not await asyncio.to_thread(self._place.folder.exists) and not await self._holding.taken():
                    return  # it never had a process
                await self._holding.seize()
            await self._holding.kill_marked()
            if not await asyncio.to_thread(self._site.places.remove, self._place):
                log.warning("not all files of session %s could be deleted", self.session_id)
            await self.release()

    async def _abort_start(self) -> None:
        if self._start is not None and not self._start.done():
            self._start.cancel()
            await asyncio.wait({self._start})

    async def _started(self) -> HttpSandbox:
        async with self._turn:
            if self._life is not None and (sandbox := self.sandbox) is not None:
                self._life.activity.touch()
                return sandbox
            if self.died:
                log.warning("the sandbox of session %s had ended by itself; starting it again", self.session_id)
                await self._end_life()
                await self._holding.kill_marked()
            deletion = await self._holding.deletion()
            deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
            while (sandbox := await self._made(deletion) or await self._borrower.take()) is None:
                if asyncio.get_running_loop().time() > deadline:
                    raise SandboxUnavailable("Another process of the service has the session's sandbox, out of reach.")
                await asyncio.sleep(LOOK_SECONDS)
            return sandbox

    async def _made(self, deletion: int) -> HttpSandbox | None:
        """Our own, new; None while another process has the session. `deletion` is the last that was before."""
        if await self._holding.taken():
            return None
        try:
            async with self._site.gate:
                if not await self._holding.gain():
                    return None
                if await self._holding.deleted_since(deletion):
                    raise SandboxUnavailable(ENDED)
                await self._borrower.let_go()
                self._life = await self._live()
        except (OSError, SandboxUnavailable) as error:
            await self.release()
            if await self._holding.deleted_since(deletion):
                raise SandboxUnavailable(ENDED) from error
            if isinstance(error, OSError):
                raise SandboxUnavailable(f"No folder for the sandbox could be made: {error.strerror}.") from error
            raise
        self._watch = asyncio.create_task(self._clear_up_after(self._life), name=f"sandbox watch {self.session_id}")
        return self._life.sandbox

    async def _live(self) -> Life:
        if self._holding.claim is None:
            raise RuntimeError("a sandbox is started by whoever has the session")
        return await Life.begin(
            self._place,
            self._holding.claim,
            session_id=self.session_id,
            mark=self._site.ledger.mark(self.session_id),
            environment=self._site.environment,
            exec_seconds=self._site.exec_seconds,
        )

    async def _clear_up_after(self, life: Life) -> None:
        """Once our process has ended by itself, or by the hand of another process, the session is not ours."""
        await life.process.ended()
        async with self._turn:
            if self._life is life:
                log.warning("the sandbox of session %s has ended, and not by our hand", self.session_id)
                await self._end_life()
                await self._holding.kill_marked()
                await self.release()

    async def _end_life(self) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        try:
            await self._holding.retract()
        finally:
            await life.close()

    def _report(self, start: asyncio.Task[HttpSandbox]) -> None:
        """A start that nobody waits for fails in the log; whoever asks next tries again and is told."""
        if start.cancelled() or (error := start.exception()) is None:
            return
        if str(error) == ENDED:
            log.info("session %s was deleted while its sandbox started", self.session_id)
        else:
            log.error("no sandbox for session %s", self.session_id, exc_info=error)
