"""One session's local sandbox through its lives: started, ended when idle, started again, destroyed."""

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox import answers
from app.infrastructure.sandbox.activity import Activity
from app.infrastructure.sandbox.client import HttpSandbox
from app.infrastructure.sandbox.ledger import Ledger
from app.infrastructure.sandbox.link import SandboxLink
from app.infrastructure.sandbox.process import SandboxProcess
from app.infrastructure.sandbox.workspace import Places

log = logging.getLogger(__name__)

START_SECONDS = 30.0
"""How long a process may take from its start to its first answer, on a machine that starts several."""

ASK_SECONDS = 2.0
"""How long an idle sandbox may take to tell whether somebody drives its browser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the slots of one provider share."""

    places: Places
    ledger: Ledger
    gate: asyncio.Semaphore
    """Bounds how many start at once: a start is half a second of CPU."""
    environment: Mapping[str, str]
    exec_seconds: float
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Life:
    """A process with what was opened for it."""

    process: SandboxProcess
    link: SandboxLink
    sandbox: HttpSandbox
    activity: Activity


class Slot:
    """At most one sandbox process for one session, whoever asks for it and however often."""

    def __init__(self, session_id: str, site: Site) -> None:
        self._session_id = session_id
        self._site = site
        self._place = site.places.of(session_id)
        self._life: _Life | None = None
        self._start: asyncio.Task[HttpSandbox] | None = None
        # Starts, ends and removals come one after the other.
        self._turn = asyncio.Lock()

    @property
    def sandbox(self) -> HttpSandbox | None:
        """The sandbox, if its process runs."""
        return self._life.sandbox if self._life and self._life.process.running else None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._life.process.pid if self._life and self._life.process.running else None

    @property
    def empty(self) -> bool:
        """Whether there is nothing here to keep: no process, dead or alive, and nothing under way."""
        return self._life is None and not self._turn.locked() and (self._start is None or self._start.done())

    @property
    def died(self) -> bool:
        """Whether a process has ended by itself and nobody has cleared up after it yet."""
        return self._life is not None and not self._life.process.running

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last call; 0 while there is one, or no process."""
        return self._life.activity.idle_seconds if self._life else 0.0

    def begin(self) -> asyncio.Task[HttpSandbox]:
        """The start that is under way, or a new one. It is shared: waiters must not cancel it."""
        if self._start is None or self._start.done():
            self._start = asyncio.create_task(self._started(), name=f"sandbox start {self._session_id}")
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
            raise SandboxUnavailable("The session's sandbox was ended while it started.")
        return start.result()

    async def rest(self, *, idle_for: float) -> bool:
        """End a process that died or was idle for `idle_for` seconds; the workspace stays. Answers whether it did."""
        async with self._turn:
            # Somebody may have come while this waited for its turn.
            if not self.died and (self._life is None or self.idle_seconds < idle_for):
                return False
            if self._life is not None and not self.died and await self._is_driven(self._life):
                self._life.activity.touch()
                return False
            await self._end_life()
            await self._kill_marked()
            return True

    async def end(self) -> None:
        """End the process, or its start, whoever uses it; the workspace stays.

        What the sandbox may have lost sight of is left to the caller, who looks once for all slots.
        """
        await self._abort_start()
        async with self._turn:
            await self._end_life()

    async def destroy(self) -> None:
        """End everything and delete the folder."""
        await self._abort_start()
        async with self._turn:
            await self._end_life()
            if not await asyncio.to_thread(self._place.folder.exists):
                return  # it never had a process
            await self._kill_marked()
            if not await asyncio.to_thread(self._site.places.remove, self._place):
                log.warning("not all files of session %s could be deleted", self._session_id)

    async def _is_driven(self, life: _Life) -> bool:
        """Whether it is in use without us, over a connection that is not ours."""
        try:
            return answers.idle_seconds(await life.link.get("status", seconds=ASK_SECONDS)) == 0
        except (SandboxUnavailable, SandboxFailure):
            return False

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
                log.warning("the sandbox of session %s had ended by itself; starting it again", self._session_id)
                await self._end_life()
                await self._kill_marked()
            async with self._site.gate:
                self._life = await self._live()
            return self._life.sandbox

    async def _live(self) -> _Life:
        try:
            await asyncio.to_thread(self._place.make)
        except OSError as error:
            raise SandboxUnavailable(f"No folder for the sandbox could be made: {error.strerror}.") from error
        process = await SandboxProcess.spawn(
            self._place,
            mark=self._site.ledger.mark(self._session_id),
            source=self._site.environment,
            exec_seconds=self._site.exec_seconds,
        )
        link = SandboxLink(process.address, process.token)
        try:
            await link.get("status", seconds=START_SECONDS)
        except (SandboxUnavailable, SandboxFailure) as error:
            raise await self._stillborn(process, link, error) from error
        except asyncio.CancelledError:
            await self._close(process, link)
            raise
        activity = Activity(self._site.clock)
        home = await asyncio.to_thread(os.path.realpath, self._place.workspace)
        sandbox = HttpSandbox(
            link,
            computer=f"{process.pid}-{secrets.token_hex(4)}",  # the number alone may be given again
            home=home,
            exec_seconds=self._site.exec_seconds,
            activity=activity,
        )
        return _Life(process, link, sandbox, activity)

    async def _stillborn(self, process: SandboxProcess, link: SandboxLink, error: Exception) -> SandboxUnavailable:
        """The reason for whoever asked; what the process itself said is a note, for the log: it may name paths."""
        status = await self._close(process, link)
        reason = SandboxUnavailable("The session's sandbox did not start; the service's log says why.")
        reason.add_note(f"{error} Exit status {status}; it wrote:\n{await process.last_words()}")
        return reason

    async def _end_life(self) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        await self._close(life.process, life.link)

    async def _kill_marked(self) -> None:
        """What the sandbox did not know of any more, from before a crash for instance."""
        await asyncio.to_thread(self._site.ledger.kill, {self._session_id})

    async def _close(self, process: SandboxProcess, link: SandboxLink) -> int:
        try:
            return await process.stop()
        finally:
            await link.aclose()

    def _report(self, start: asyncio.Task[HttpSandbox]) -> None:
        """A start that nobody waits for fails in the log; whoever asks next tries again and is told."""
        if not start.cancelled() and (error := start.exception()) is not None:
            log.error("no sandbox for session %s", self._session_id, exc_info=error)
