"""A pool of `SANDBOX_POOL_SIZE` running sandboxes without a session, created one at a time in the background."""

import asyncio
import logging
import secrets
from collections import deque

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker.container_spec import VOLUME_LABEL
from app.infrastructure.sandbox.docker.containers import RunningContainer, SandboxContainers

log = logging.getLogger(__name__)


class SandboxPool:
    """The pooled sandboxes of this process. No other process adopts them; without renewals they end themselves."""

    def __init__(self, containers: SandboxContainers, *, size: int) -> None:
        """Keep `size` sandboxes ready once `refill` is called."""
        self.maker = secrets.token_hex(8)
        """Identifies this process on the containers that it created."""
        self.created_ids: set[str] = set()
        """Ids of the containers that this pool created and did not discard, adopted ones included."""
        self._containers = containers
        self._size = size
        self._ready: deque[RunningContainer] = deque()
        self._filler: asyncio.Task[None] | None = None

    @property
    def ready_ids(self) -> list[str]:
        """Ids of the containers that can be taken."""
        return [running.container.id for running in self._ready]

    def refill(self) -> None:
        """Create the missing sandboxes in the background."""
        if self._size and (self._filler is None or self._filler.done()):
            self._filler = asyncio.create_task(self._fill(), name="sandbox pool")

    async def take(self) -> RunningContainer | None:
        """Return a sandbox that responds, or None if there is none. The pool is refilled in the background."""
        while self._ready:
            running = self._ready.popleft()
            self.refill()
            if await self._containers.is_alive(running):
                return running
            await self.discard(running)
        return None

    def put_back(self, running: RunningContainer) -> None:
        """Return a sandbox that was taken but not adopted."""
        self._ready.append(running)

    async def discard(self, running: RunningContainer) -> None:
        """Remove a sandbox that was not adopted."""
        await running.close()
        self.created_ids.discard(running.container.id)
        try:
            await self._containers.destroy_pooled(running.container.labels[VOLUME_LABEL])
        except SandboxUnavailable as error:
            log.warning("could not remove a pooled sandbox: %s", error)

    async def maintain(self) -> None:
        """Renew the idle timers of the sandboxes, discard those that do not respond, and replace them."""
        for running in list(self._ready):
            try:
                await running.renew()
            except SandboxUnavailable:
                if running in self._ready:
                    self._ready.remove(running)
                    await self.discard(running)
        self.refill()

    async def close(self) -> None:
        """Stop filling the pool and remove its sandboxes."""
        self._size = 0
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.wait({self._filler})
        ready, self._ready = list(self._ready), deque()
        await asyncio.gather(*(self.discard(running) for running in ready))

    async def _fill(self) -> None:
        try:
            while len(self._ready) < self._size:
                self._ready.append(await self._create())
        except SandboxUnavailable as error:
            # Sessions get the same error when they need a sandbox. The reaper's next round starts another attempt.
            log.warning("could not create a pooled sandbox: %s", error)
        except Exception:
            log.exception("filling the sandbox pool failed")

    async def _create(self) -> RunningContainer:
        await self._containers.firewall.ensure()
        async with self._containers.start_slots.slot(""):
            name = self._containers.names.new_name("pool")
            try:
                await self._containers.create_pooled(name, self.maker)
                running = await self._containers.launch(name)
            except BaseException:
                await self._containers.destroy_pooled(name)
                raise
            self.created_ids.add(running.container.id)
            return running
