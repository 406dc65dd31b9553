"""From a container that was made to one that answers."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker import failures
from app.infrastructure.sandbox.docker.engine import Engine
from app.infrastructure.sandbox.docker.facts import Container
from app.infrastructure.sandbox.docker.guard import Guard
from app.infrastructure.sandbox.docker.life import ANSWER_SECONDS, Life
from app.infrastructure.sandbox.docker.spec import PORT

log = logging.getLogger(__name__)

READY_SECONDS = 30.0
"""How long a container may take from its start to its first answer."""
PROMPT_SECONDS = 0.25
"""How long one that answered before takes to answer again, as a rule."""
BUSY_SECONDS = 10.0
"""How long one that has run for a while may be too busy to answer."""
POLL_SECONDS = 0.005
LOOK_SECONDS = 0.5
"""How often the engine is asked meanwhile whether it still runs."""


class Launcher:
    """Starts containers and waits for them, for sessions and for the pool."""

    def __init__(
        self,
        engine: Engine,
        guard: Guard,
        *,
        network: str,
        exec_seconds: float,
        starts_at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gate = asyncio.Semaphore(starts_at_once)
        """Bounds how many start at once: a start is seconds of CPU. Whoever waits here waits as long as it takes."""
        self._engine = engine
        self._guard = guard
        self._network = network
        self._exec_seconds = exec_seconds
        self._clock = clock

    async def launch(self, name: str) -> Life:
        """Start the container `name` and wait until its sandbox answers; one that does not is removed.

        Raises:
            Missing: there is no such container, or its network is gone.
            SandboxUnavailable: it does not start.
        """
        try:
            await self._engine.start(name)
        except failures.Refused:
            # It would be refused again; how the next one is made may have been changed by then.
            await self._engine.remove(name)
            raise
        container = await self._engine.container(name)
        if container is None or not (address := container.address(self._network)):
            raise await self._stillborn(container)
        if address in self._guard.services:
            # It has inherited the address of a service that is gone, and with it the way to other sandboxes.
            self._guard.doubt()
            await self._guard.ensure()
            if address in self._guard.services:
                raise await self._stillborn(container)
        life = self.attach(container)
        try:
            if await self._answers(life, READY_SECONDS):
                return life
        except BaseException:
            await life.close()
            raise
        await life.close()
        raise await self._stillborn(container)

    async def has(self, life: Life) -> bool:
        """Whether a sandbox that answered before answers now; if it does, it counts as used."""
        if life.doubtful:
            return False
        taking = asyncio.create_task(life.take())
        try:
            await asyncio.wait({taking}, timeout=PROMPT_SECONDS)
            # Nobody answers at the address of a container that is gone, and that takes long to show.
            if not taking.done() and not await self._runs(life):
                return False
            return await taking
        finally:
            taking.cancel()

    async def revive(self, life: Life) -> bool:
        """Whether the sandbox of a container that runs already answers, waiting as long as is reasonable."""
        age = (datetime.now(UTC) - life.container.created).total_seconds()
        return await self._answers(life, READY_SECONDS if age < 2 * READY_SECONDS else BUSY_SECONDS)

    def reaches(self, container: Container) -> bool:
        """Whether a container that runs is in the sandboxes' network, as it is set now."""
        return bool(container.address(self._network))

    def attach(self, container: Container) -> Life:
        """The connection to a container that runs."""
        address = container.address(self._network)
        return Life(container, address, exec_seconds=self._exec_seconds, clock=self._clock)

    async def _answers(self, life: Life, seconds: float) -> bool:
        """Whether the sandbox answers within `seconds`; False as soon as its container has ended."""
        host = life.link.address.removeprefix("http://").rpartition(":")[0]
        ends = self._clock() + seconds
        looks = self._clock() + LOOK_SECONDS
        while (left := ends - self._clock()) > 0:
            # A bare connect costs next to nothing while nobody listens yet, unlike a request.
            if await _listens(host) and await life.is_up(min(left, ANSWER_SECONDS)):
                return True
            if self._clock() >= looks:
                if not await self._runs(life):
                    return False
                looks = self._clock() + LOOK_SECONDS
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _runs(self, life: Life) -> bool:
        """Whether the engine knows nothing to the contrary."""
        try:
            container = await self._engine.container(life.container.id)
        except failures.EngineAway:
            return True
        return container is not None and not container.ended

    async def _stillborn(self, container: Container | None) -> SandboxUnavailable:
        """The failure of a container that never answered; it is removed, and its last words are logged."""
        if container is not None:
            now = await self._engine.container(container.id)
            words = await self._engine.last_words(container.id) if now else ""
            log.error(
                "the sandbox %s did not start (%s, exit status %s%s): %s",
                container.name,
                now.state if now else "gone",
                now.exit_code if now else "unknown",
                ", out of memory" if now and now.out_of_memory else "",
                words or "it said nothing",
            )
            await self._engine.remove(container.id)
        return SandboxUnavailable("The sandbox did not start; the service's log has its last words.")


async def _listens(host: str) -> bool:
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(host, PORT)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
