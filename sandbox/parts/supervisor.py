"""Supervision of one program: it is restarted whenever it ends."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from sandbox.parts.child import Child, Command

_FIRST_PAUSE = 0.1
"""Pause before the first restart, in seconds."""
_MAX_PAUSE = 10.0
"""Longest pause before a restart, in seconds."""
_STEADY_SECONDS = 10.0
"""Run time after which an end no longer counts as a failed start, in seconds."""
_CLOSE_SECONDS = 0.6
"""Time for a program to close itself, in seconds."""
_EXIT_SECONDS = 2.0
"""Maximum wait for the end of a program whose connection is closed, in seconds."""
_SEARCH_BYTES = 65536
"""Number of bytes of output to search for `ready`."""

log = logging.getLogger("sandbox")


class Supervisor:
    """Starts a program and restarts it whenever it ends, after a pause that grows with repeated failures."""

    def __init__(
        self,
        name: str,
        launch: Callable[[], Awaitable[Command]],
        *,
        ready: re.Pattern[bytes] | None = None,
        probe: Callable[[], Awaitable[str]] | None = None,
        close_gracefully: Callable[[], Awaitable[object]] | None = None,
        grace: float = 0.3,
    ) -> None:
        """Create the supervisor without starting the program.

        Args:
            name: Name of the program for log lines.
            launch: Returns the command for each start. It may wait for what the program needs.
            ready: Pattern in the program's output that shows that it can be used; its group becomes `ready_text`.
            probe: Waits until the program that was just started can be used, and returns the `ready_text`. May raise
                OSError. Without `ready` and `probe`, the program can be used at once.
            close_gracefully: Asks the program to end itself before a signal does. May raise OSError.
            grace: Time for the program to end after SIGTERM, in seconds.
        """
        self.name = name
        self.ready_text: str | None = None
        """Text by which the running program showed that it can be used; None while it cannot."""
        self.last_failure = ""
        """End of the output of the last run that never became ready."""
        self._launch = launch
        self._pattern = ready
        self._probe = probe
        self._close_gracefully = close_gracefully
        self._grace = grace
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._restart_now = asyncio.Event()

    @property
    def started(self) -> bool:
        """Whether the program is supervised."""
        return self._task is not None

    @property
    def pids(self) -> set[int]:
        """The process that this program waits for, if any."""
        return {self._child.pid} if self._child is not None else set()

    def start(self) -> None:
        """Start the program and keep it running. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name=f"keep {self.name}")

    async def wait_ready(self, seconds: float) -> str:
        """Return `ready_text` once the program can be used.

        Raises:
            TimeoutError: It was not ready within `seconds`.
        """
        async with asyncio.timeout(seconds):
            while self.ready_text is None:
                await self._ready.wait()
        return self.ready_text

    async def wait_for_exit(self) -> None:
        """Wait briefly for the program to end.

        Call this after a refused or closed connection, which shows the end earlier than the process does.
        """
        if self._child is not None:
            await asyncio.wait({self._child.exited}, timeout=_EXIT_SECONDS)

    async def restart(self) -> None:
        """End the program with its whole process group. It starts again at once."""
        self._restart_now.set()
        await self._end_child()

    async def stop(self) -> None:
        """Stop the program and its supervision."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        await self._end_child()
        self._child = None

    async def _supervise(self) -> None:
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while True:
            began = loop.time()
            try:
                await self._run(await self._launch())
            except OSError as error:
                self.last_failure = error.strerror or str(error)
            log.warning("%s ended and is started again: %s", self.name, self.last_failure.rpartition("\n")[2])
            if loop.time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            await self._pause(pause)
            pause = min(pause * 2, _MAX_PAUSE)

    async def _run(self, command: Command) -> None:
        """Run the program until it ends."""
        self._restart_now.clear()
        searched = bytearray()

        def look(data: bytes) -> None:
            if self.ready_text is not None or self._pattern is None:
                return
            searched.extend(data)
            if found := self._pattern.search(searched):
                self._become_ready(found[1].decode())
            del searched[:-_SEARCH_BYTES]

        self._child = child = Child(command, look)
        child.exited.add_done_callback(lambda _: self._unready())
        probing = asyncio.create_task(self._wait_for_probe(self._probe)) if self._probe is not None else None
        if self._pattern is None and probing is None:
            self._become_ready("")
        try:
            await asyncio.shield(child.exited)
        finally:
            if probing is not None:
                probing.cancel()
        self.last_failure = child.output_tail
        self._child = None

    async def _wait_for_probe(self, probe: Callable[[], Awaitable[str]]) -> None:
        try:
            self._become_ready(await probe())
        except OSError as error:
            log.info("%s cannot be used: %s", self.name, error)

    async def _end_child(self) -> None:
        child, ready_text = self._child, self.ready_text
        self._unready()
        if child is None:
            return
        if ready_text is not None and self._close_gracefully is not None:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._close_gracefully()
                    await asyncio.shield(child.exited)
            except OSError:
                pass  # end it by a signal instead
        await child.stop(self._grace)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._restart_now.wait()
        except TimeoutError:
            return

    def _become_ready(self, ready_text: str) -> None:
        self.ready_text = ready_text
        self._ready.set()

    def _unready(self) -> None:
        self.ready_text = None
        self._ready.clear()
