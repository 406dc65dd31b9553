"""Sandboxes that wait for sessions: `SANDBOX_POOL_SIZE` of them, made one at a time behind everybody else."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Collection

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.docker.guard import Guard
from app.infrastructure.sandbox.docker.launch import Launcher
from app.infrastructure.sandbox.docker.ledger import Ledger
from app.infrastructure.sandbox.docker.life import Life
from app.infrastructure.sandbox.docker.names import VOLUME, Names

log = logging.getLogger(__name__)


class Pool:
    """The waiting sandboxes of this process: nobody else adopts them, and they end themselves some time after it."""

    def __init__(self, names: Names, ledger: Ledger, guard: Guard, launcher: Launcher, *, size: int) -> None:
        self.maker = secrets.token_hex(8)
        """Names this process, on the containers that it has made."""
        self._names = names
        self._ledger = ledger
        self._guard = guard
        self._launcher = launcher
        self._size = size
        self._waiting: deque[Life] = deque()
        self._made_ids: set[str] = set()
        self._wanted = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None

    @property
    def made(self) -> Collection[str]:
        """The ids of the containers that this process has made and not thrown away: the pool looks after them."""
        return self._made_ids

    def start(self) -> None:
        """Begin to make them."""
        if self._size and self._filler is None:
            self._wanted.set()
            self._filler = asyncio.create_task(self._fill_forever(), name="sandbox pool")

    async def take(self) -> Life | None:
        """One that answers, or None at once; another is made behind."""
        while self._waiting:
            life = self._waiting.popleft()
            self._wanted.set()
            if await self._launcher.has(life):
                return life
            await self.discard(life)
        return None

    def give_back(self, life: Life) -> None:
        """It was not needed after all."""
        self._waiting.append(life)

    async def discard(self, life: Life) -> None:
        """Remove one that is of no use."""
        await life.close()
        self._made_ids.discard(life.container.id)
        try:
            await self._ledger.destroy_waiting(life.container.labels[VOLUME])
        except SandboxUnavailable as error:
            log.warning("a waiting sandbox could not be removed now: %s", error)

    async def tend(self) -> None:
        """Tell those that wait that they are wanted, throw away those that do not answer, and make up for them."""
        for life in list(self._waiting):
            try:
                await life.renew()
            except SandboxUnavailable:
                if life in self._waiting:
                    self._waiting.remove(life)
                    await self.discard(life)
        self._wanted.set()

    async def close(self) -> None:
        """Stop making them and remove those that there are."""
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.wait({self._filler})
            self._filler = None
        waiting, self._waiting = list(self._waiting), deque()
        await asyncio.gather(*(self.discard(life) for life in waiting))

    async def _fill_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                while len(self._waiting) < self._size:
                    self._waiting.append(await self._made())
            except SandboxUnavailable as error:
                # Sessions are told the same when they ask; the reaper's next round has it tried again.
                log.warning("no sandbox could be made to wait: %s", error)
            except Exception:
                log.exception("the pool of sandboxes has stumbled")

    async def _made(self) -> Life:
        await self._guard.ensure()
        async with self._launcher.gate:
            name = self._names.waiting()
            try:
                await self._ledger.create_waiting(name, self.maker, self._guard.reach)
                life = await self._launcher.launch(name)
            except BaseException:
                await self._ledger.destroy_waiting(name)
                raise
            self._made_ids.add(life.container.id)
            return life
