"""Keeps one program running."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from sandbox.parts.child import Child, Command

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_STEADY_SECONDS = 10.0
"""Who has run for so long did not fail at its start: the pauses begin anew."""
_FAREWELL_SECONDS = 0.6
_NOTICE_SECONDS = 2.0
_SEARCHED = 65536

log = logging.getLogger("sandbox")


class Keeper:
    """Starts a program, and again whenever it ends, after a pause that grows while it keeps failing.

    `launch` gives the command, anew for every start; it may wait for what the program needs. `ready` is what the
    program writes once it can be used, with one group: what its users need to know.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], Awaitable[Command]],
        *,
        ready: re.Pattern[bytes] | None = None,
        farewell: Callable[[str], Awaitable[None]] | None = None,
        grace: float = 0.3,
    ) -> None:
        """Without `ready` it can be used at once. `farewell` asks it, by what it said, to end itself, before any signal
        does; may raise OSError, EOFError. `grace` is how long it may take after SIGTERM."""
        self.name = name
        self.said: str | None = None
        """What the running program wrote in the group of `ready`; None while it cannot be used."""
        self.failure = ""
        """The end of what it wrote when it last ended before it could be used."""
        self._launch = launch
        self._pattern = ready
        self._farewell = farewell
        self._grace = grace
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether it is being kept running."""
        return self._task is not None

    @property
    def pids(self) -> set[int]:
        """The process that is waited for, if there is one."""
        return {self._child.pid} if self._child is not None else set()

    def begin(self) -> None:
        """Keeps the program running from now on. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def ready(self, seconds: float) -> str:
        """What it said, once it can be used; raises TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds):
            while self.said is None:
                await self._ready.wait()
        return self.said

    async def lost(self) -> None:
        """To be called by who finds its connection closed or refused: that shows before the program's end does. Returns
        when that is known here, or soon if it goes on running."""
        if self._child is not None:
            await asyncio.wait({self._child.exited}, timeout=_NOTICE_SECONDS)

    async def restart(self) -> None:
        """Ends the program with its whole group; it is started again at once."""
        self._hurry.set()
        await self._end_child()

    async def end(self) -> None:
        """Ends the program for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        await self._end_child()
        self._child = None

    async def _keep(self) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while True:
            began = loop.time()
            try:
                await self._run(await self._launch())
            except OSError as error:
                self.failure = error.strerror or str(error)
            log.warning("%s ended and is started again: %s", self.name, self.failure.rpartition("\n")[2])
            if loop.time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            await self._rest(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _run(self, command: Command) -> None:
        """Until it has ended."""
        self._hurry.clear()
        searched = bytearray()

        def look(data: bytes) -> None:
            if self.said is not None or self._pattern is None:
                return
            searched.extend(data)
            if found := self._pattern.search(searched):
                self._become_ready(found[1].decode())
            del searched[:-_SEARCHED]

        self._child = child = Child(command, look)
        child.exited.add_done_callback(lambda _: self._unready())
        if self._pattern is None:
            self._become_ready("")
        await asyncio.shield(child.exited)
        self.failure = child.last_words
        self._child = None

    async def _end_child(self) -> None:
        child, said = self._child, self.said
        self._unready()
        if child is None:
            return
        if said is not None and self._farewell is not None:
            try:
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self._farewell(said)
                    await asyncio.shield(child.exited)
            except (OSError, EOFError):
                pass  # then by a signal
        await child.end(self._grace)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return

    def _become_ready(self, said: str) -> None:
        self.said = said
        self._ready.set()

    def _unready(self) -> None:
        self.said = None
        self._ready.clear()
