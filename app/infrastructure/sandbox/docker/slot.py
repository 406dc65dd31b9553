"""One session's container through its lives: found or made, looked after, ended when idle, destroyed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.engine import Engine
from app.infrastructure.sandbox.docker.facts import Container
from app.infrastructure.sandbox.docker.guard import Guard
from app.infrastructure.sandbox.docker.launch import Launcher
from app.infrastructure.sandbox.docker.ledger import Ledger
from app.infrastructure.sandbox.docker.life import Life
from app.infrastructure.sandbox.docker.pool import Pool

log = logging.getLogger(__name__)

ATTEMPTS = 40
PAUSE_SECONDS = 0.1
"""Between two looks at a container that another process makes or removes just now."""
FIND_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the slots of one provider share."""

    engine: Engine
    ledger: Ledger
    guard: Guard
    launcher: Launcher
    pool: Pool


class Slot:
    """This process's view of one session's sandbox. What is true is in the engine; here is how to reach it."""

    def __init__(self, session_id: str, name: str, site: Site) -> None:
        """`name` is the container's."""
        self._session_id = session_id
        self._name = name
        self._site = site
        self._life: Life | None = None
        self._start: asyncio.Task[HttpSandbox] | None = None
        # Starts, ends and removals come one after the other.
        self._turn = asyncio.Lock()

    @property
    def empty(self) -> bool:
        """Whether there is nothing here to keep."""
        return self._life is None and not self._turn.locked() and (self._start is None or self._start.done())

    @property
    def container_id(self) -> str:
        """The container that was last known to run; "" when none was."""
        return self._life.container.id if self._life else ""

    def begin(self) -> asyncio.Task[HttpSandbox]:
        """The start that is under way, or a new one. It is shared: waiters must not cancel it."""
        if self._start is None or self._start.done():
            self._start = asyncio.create_task(self._started(), name=f"sandbox start {self._session_id}")
            self._start.add_done_callback(self._report)
        return self._start

    async def acquire(self) -> HttpSandbox:
        """The sandbox, ready; started first when none runs.

        Raises:
            SandboxUnavailable: none can be had, or it was ended meanwhile.
        """
        life = self._life
        if life is not None and (life.fresh or await self._site.launcher.has(life)):
            return life.sandbox
        start = self.begin()
        await asyncio.wait({start})
        if start.cancelled():
            raise SandboxUnavailable("The session's sandbox was ended while it started.")
        return start.result()

    async def find(self) -> HttpSandbox | None:
        """The sandbox if its container runs and answers.

        Raises:
            SandboxUnavailable: the engine does not tell, or its network is not guarded.
        """
        life = self._life
        if life is not None and (life.fresh or await self._site.launcher.has(life)):
            return life.sandbox
        if self._start is not None and not self._start.done():
            # It is on its way, or is only being looked up after this service was started anew.
            await asyncio.wait({self._start}, timeout=FIND_SECONDS)
            return self._life.sandbox if self._life and self._life.fresh else None
        async with self._turn:
            await self._site.guard.ensure()
            found = await self._site.ledger.find(self._session_id)
            return self._life.sandbox if await self._resumed(found) and self._life else None

    async def rest(self, container: Container, *, still: Callable[[], Awaitable[bool]]) -> bool:
        """End `container`, the session's, unless it is `still` not idle once it is its turn. The workspace stays."""
        async with self._turn:
            if not await still():
                return False
            if self.container_id == container.id:
                await self._let_go()
            await self._site.ledger.remove(container)
            return True

    async def forget(self) -> None:
        """Let go of a container that is known to have ended."""
        async with self._turn:
            await self._let_go()

    async def end(self) -> None:
        """End a start that is under way and let go; what runs goes on."""
        await self._abort_start()
        async with self._turn:
            await self._let_go()

    async def destroy(self) -> None:
        """Remove all that the session has.

        Raises:
            SandboxUnavailable: the engine is away.
        """
        await self._abort_start()
        async with self._turn:
            await self._let_go()
            await self._site.ledger.destroy(self._session_id)

    async def _abort_start(self) -> None:
        if self._start is not None and not self._start.done():
            self._start.cancel()
            await asyncio.wait({self._start})

    async def _started(self) -> HttpSandbox:
        async with self._turn:
            if self._life is not None and self._life.fresh:
                return self._life.sandbox
            # First of all: should sandboxes be allowed something else now, it ends those that were started before.
            await self._site.guard.ensure()
            found = await self._site.ledger.find(self._session_id)
            if await self._resumed(found) and self._life is not None:
                return self._life.sandbox
            if self._life is not None:
                # It ended by itself, which it also does when the engine is started anew.
                self._site.guard.doubt()
                await self._let_go()
                await self._site.guard.ensure()
            self._life = await self._adopted(found) or await self._made(found)
            return self._life.sandbox

    async def _resumed(self, found: Container | None) -> bool:
        """Whether the container that there is can be used on; one that runs and does not answer is removed."""
        if found is None:
            return False
        if found.state == "paused":
            await self._site.engine.unpause(found.id)
        elif not found.runs:
            return False
        if not self._site.launcher.reaches(found):
            log.warning("the sandbox of session %s is in another network: it is started anew", self._session_id)
            await self._let_go()
            await self._site.engine.remove(found.id)
            return False
        if self._life is None or self._life.container.id != found.id:
            await self._let_go()
            self._life = self._site.launcher.attach(found)
        if await self._site.launcher.revive(self._life) and await self._life.take():
            return True
        log.warning("the sandbox of session %s runs and does not answer: it is started anew", self._session_id)
        await self._let_go()
        await self._site.engine.remove(found.id)
        return False

    async def _adopted(self, found: Container | None) -> Life | None:
        """A waiting sandbox, if there is one and the session has had none before."""
        if found is not None:
            return None
        while (life := await self._site.pool.take()) is not None:
            adoption = await self._site.ledger.adopt(life.container, self._session_id)
            if adoption == "adopted":
                return life
            if adoption == "refused":
                self._site.pool.give_back(life)
                return None
            await self._site.pool.discard(life)
        return None

    async def _made(self, found: Container | None) -> Life:
        async with self._site.launcher.gate:
            for attempt in range(ATTEMPTS):
                if attempt or found is not None:
                    found = await self._site.ledger.find(self._session_id)
                try:
                    if found is not None and found.ended:
                        await self._bury(found)
                        found = None
                    if found is None:
                        await self._site.ledger.create(self._session_id, self._site.guard.reach)
                    return await self._site.launcher.launch(self._name)
                except failures.Taken:
                    await asyncio.sleep(PAUSE_SECONDS)
                except failures.Missing:
                    # Somebody has removed the container, or the network.
                    self._site.guard.doubt()
                    await self._site.guard.ensure()
        raise SandboxUnavailable("The session's sandbox could not be started: its container comes and goes.")

    async def _bury(self, ended: Container) -> None:
        known = await self._site.engine.container(ended.id) or ended
        log.warning(
            "the sandbox of session %s had ended (exit status %d%s): starting a new one",
            self._session_id,
            known.exit_code,
            ", out of memory" if known.out_of_memory else "",
        )
        await self._site.engine.remove(ended.id)

    async def _let_go(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            await life.close()

    def _report(self, start: asyncio.Task[HttpSandbox]) -> None:
        """A start that nobody waits for fails in the log; whoever asks next tries again and is told."""
        if not start.cancelled() and (error := start.exception()) is not None:
            unforeseen = None if isinstance(error, SandboxUnavailable) else error
            log.error("no sandbox for session %s: %s", self._session_id, error, exc_info=unforeseen)
